"""Benchmarks that run both sides in one process on one machine and print the ratio: ours, and the released way.

The released way (`released.py`) is written from what SCT's release does: float32, images decoded in every epoch by
four workers, activations kept on the host, a module by indexed assignment, the test split evaluated every ten epochs.
"""
