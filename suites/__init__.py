"""Suites: what is compared on which data. A suite is data; `base.py` says of what kind."""

from suites.base import Suite, SuiteError, Task
from suites.demo import DEMO, DEMO_FULL

SUITES: dict[str, Suite] = {suite.name: suite for suite in (DEMO, DEMO_FULL)}
"""Every suite by name."""

__all__ = ["SUITES", "Suite", "SuiteError", "Task"]
