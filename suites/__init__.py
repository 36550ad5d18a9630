"""Suites: what is compared on which data. A suite is data; `base.py` says of what kind."""

from pathlib import Path

from suites.base import Suite
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
    return name_of(Path(text)) if text not in SUITES and is_place(text) else text


__all__ = ["SUITES", "load_suite", "suite_name"]
