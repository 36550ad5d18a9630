"""Errors whose message is meant for the user: the command line prints them without a traceback."""

from methods.base import MethodError
from methods.base import did_you_mean as did_you_mean
from suites.base import SuiteError


class HarnessError(ValueError):
    """Input that cannot be worked with; the message names the key, value or file and says what to do."""


class DataError(HarnessError):
    """Lists or images that are missing or damaged."""


class PlaceError(HarnessError):
    """A folder that cannot be written to, or whose disk is full."""

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno
        """The system's number for it."""


class Interrupted(Exception):
    """The run stopped because it was asked to. Its state is saved; the same spec, done again, goes on from there."""


USER_ERRORS = (HarnessError, MethodError, SuiteError)
"""What the command line prints without a traceback."""
