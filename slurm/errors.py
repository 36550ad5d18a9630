"""Errors of schedulers, meant for the user."""

from harness.errors import HarnessError


class ClusterError(HarnessError):
    """A scheduler cannot be reached, or refuses what was asked for; the message holds its words."""
