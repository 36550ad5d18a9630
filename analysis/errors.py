"""Errors meant for the user."""

import difflib
from collections.abc import Iterable


class AnalysisError(ValueError):
    """What was asked for is not there; the message names what is."""


def suggestion(name: str, options: Iterable[str]) -> str:
    """A sentence that names the closest options to a misspelt `name`, or lists them all."""
    known = {option.casefold(): option for option in sorted(options)}
    close = difflib.get_close_matches(name.casefold(), list(known), n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(known[text]) for text in close)}?"
    return f"There are: {', '.join(sorted(known.values())) or 'none'}."
