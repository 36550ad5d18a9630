"""Errors whose message is meant for the user: the command line prints them without a traceback."""

from methods.base import MethodError
from suites.base import SuiteError


class HarnessError(ValueError):
    """Input that cannot be worked with; the message names the key, value or file and says what to do."""


USER_ERRORS = (HarnessError, MethodError, SuiteError)
