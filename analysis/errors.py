"""Errors meant for the user."""


class AnalysisError(ValueError):
    """What was asked for is not there; the message names what is."""
