"""Kinds of backbone, one file each: all that methods and the harness know of a kind stands there.

To add a kind, add a file with a registered subclass of `Architecture`; its docstring lists what to fill in.
"""

from __future__ import annotations

import importlib
import pkgutil

from methods.architectures.base import KINDS, Architecture, SlottedBlock, architecture_of, kind, prepare

__all__ = ["KINDS", "Architecture", "SlottedBlock", "architecture_of", "kind", "prepare"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
