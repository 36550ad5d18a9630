"""Settings of methods that check themselves: the type of a field says which values it takes.

@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    rank: Count = 8
    variant: Annotated[str, one_of("paper", "released")] = "paper"
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from methods.base import check


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the values of a field must be, beside their type."""

    requirement: str
    """As messages say it, after "must be"."""

    holds: Callable[[Any], bool]


def one_of(*options: str) -> Limit:
    """The limit to these words."""
    return Limit(requirement=f"one of {', '.join(options)}", holds=lambda value: value in options)


def at_least(least: float, remark: str = "") -> Limit:
    """The limit to numbers from this one up; `remark` follows in messages."""
    return Limit(requirement=f"at least {least}{remark}", holds=lambda value: value >= least)


Count = Annotated[int, at_least(1)]
EvenCount = Annotated[Count, Limit(requirement="even", holds=lambda count: count % 2 == 0)]
Positive = Annotated[float, Limit(requirement="positive", holds=lambda value: value > 0)]
Probability = Annotated[float, Limit(requirement="in [0, 1)", holds=lambda share: 0 <= share < 1)]


def least_share(share: float, *counts: int) -> float:
    """The smallest share, in thousandths, that comes to the same whole numbers of these counts, rounded down; `share`
    itself where none does."""
    taken = [int(share * count) for count in counts]
    shares = (thousandths / 1000 for thousandths in range(1001))
    return next((least for least in shares if [int(least * count) for count in counts] == taken), share)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of configs whose fields' types hold `Limit`s; a field that may be None is not checked when it is.

    Raises `MethodError` naming the field. Checks of several fields together stand in a `__post_init__`, after
    `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        kind: type = type(self)
        for name, hint in _hints(kind, include_extras=True).items():
            value = getattr(self, name)
            for limit in _limits(hint) if value is not None else ():
                check(limit.holds(value), name, value, limit.requirement)


_hints = cache(typing.get_type_hints)


def _limits(hint: Any) -> list[Limit]:
    """The limits in a type or in the options of a union."""
    options = (hint, *typing.get_args(hint))
    return [limit for option in options for limit in getattr(option, "__metadata__", ())]
