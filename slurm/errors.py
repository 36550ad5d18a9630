"""Errors of the cluster, meant for the user."""

from harness.errors import HarnessError


class ClusterError(HarnessError):
    """SLURM cannot be reached, or refuses what was asked for; the message holds its words."""
