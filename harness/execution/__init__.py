"""Doing many runs on one machine."""
