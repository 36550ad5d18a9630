"""Suites: what is compared on which data. A suite is data; `base.py` says of what kind."""

from pathlib import Path

from suites.base import Suite
from suites.corruptions import SUFFIX, corrupted
from suites.demo import DEMO, DEMO_FULL
from suites.demo_twins import DEMO_DG, DEMO_FEWSHOT
from suites.load import load_suite
from suites.own import is_place, name_of

SUITES: dict[str, Suite] = {suite.name: suite for suite in (DEMO, DEMO_FULL, DEMO_FEWSHOT, DEMO_DG)}
"""Every suite by name. A suite of the user's own is added here when its file is named."""

for _name in ("vtab1k", "fewshot", "domain_generalization", "fgvc"):
    SUITES[_name] = load_suite(Path(__file__).parent / f"{_name}.yaml")


def suite_name(text: str) -> str:
    """The name of the suite that a text stands for, which is a name or the path of own data."""
    if text.endswith(SUFFIX):
        return suite_name(text.removesuffix(SUFFIX)) + SUFFIX
    return name_of(Path(text)) if text not in SUITES and is_place(text) else text


def known(name: str) -> Suite | None:
    """The suite of that name, or the corrupted one of a suite there is; None if there is none."""
    if name in SUITES:
        return SUITES[name]
    base = SUITES.get(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    return corrupted(base) if base else None


__all__ = ["SUITES", "known", "load_suite", "suite_name"]
