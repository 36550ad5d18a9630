"""What guards every call: no file of the user's hides our packages, and errors for the user are of one class."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ARGUMENTS = "backbone|curve|device|lists|out|protocol|redo|root|scheduler|shots|statistics|suite|tasks|track|weights"
FLAG = re.compile(rf"`sctbench [^`]*`|--({ARGUMENTS})\b")
"""A flag with the name of an argument of the door, or a whole command, which stays as it is."""

PACKAGES = ("harness", "methods", "suites", "slurm", "analysis")


def refuse_hidden_packages() -> None:
    """`ImportError` if a file or folder of one of our packages' names comes first on the path: it would run as ours."""
    here = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or [str(spec.origin)]) if spec else []:
            if Path(place).resolve().parent != here:
                raise ImportError(
                    f"{Path(place).absolute()} hides the package {package!r} of SCT Bench, which lies in {here}: it is "
                    "first on Python's path. Rename it, or leave its folder out of the path: start Python with -P (for "
                    "the working folder), or change PYTHONPATH"
                )


@contextmanager
def one_class_of_errors() -> Iterator[None]:
    """Inside, errors that are meant for the user are all raised as `sctbench.Error`, and name arguments, not flags."""
    refuse_hidden_packages()  # again: what is imported only now may be hidden after a change of the working folder
    try:
        yield
    except ValueError as error:
        from harness.errors import USER_ERRORS, HarnessError

        if not isinstance(error, USER_ERRORS):
            raise
        message = FLAG.sub(lambda match: match[1] or match[0], str(error))
        if not isinstance(error, HarnessError):
            raise HarnessError(message) from None
        error.args = (message,)
        raise
