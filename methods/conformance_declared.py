"""What a method must say about itself: its names, its settings and what may be tuned."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from typing import Any

from methods.architectures import KINDS
from methods.base import Method
from methods.conformance_tools import require, some

FAMILIES = ("full", "head", "prompt", "adapter", "reparameterisation", "selective")

RECIPE_FIELDS = frozenset(
    (
        "optimizer",
        "lr",
        "weight_decay",
        "epochs",
        "warmup_epochs",
        "batch_size",
        "drop_path",
        "label_smoothing",
        "augmentation",
        "precision",
        "schedule",
        "warmup_lr",
        "min_lr",
        "drop_last",
        "decay_vectors",
    )
)
"""Fields of the harness's training recipe, which this room may not import; a test holds the two together."""


def check_declared(method: type[Method]) -> None:
    """Class attributes are complete, and the config is frozen, keyword-only and documented."""
    for attribute in ("name", "title", "paper", "family"):
        value = getattr(method, attribute, None)
        require(isinstance(value, str) and bool(value), f"class attribute {attribute!r} is missing or empty")
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", method.name)), f"name {method.name!r} is not lower_case_with_bars")
    require(method.family in FAMILIES, f"family {method.family!r} is none of {FAMILIES}")
    require(bool(method.__doc__), "the class has no docstring")
    require(bool(method.serves) and method.serves <= set(KINDS), f"serves {set(method.serves)} is unknown")
    _check_config(method.Config)
    _check_search_space(method)


def _check_config(config: Any) -> None:
    require(dataclasses.is_dataclass(config), "Config is not a dataclass")
    parameters = config.__dataclass_params__
    require(parameters.frozen, "Config is not frozen: use @dataclass(frozen=True, kw_only=True)")
    documented = _documented_fields(config)
    for field in dataclasses.fields(config):
        require(field.kw_only is True, f"Config field {field.name!r} is not keyword-only")
        require(field.name in documented, f"Config field {field.name!r} has no docstring on the line below it")
    config()  # every field has a default


def _documented_fields(config: type) -> set[str]:
    """Fields of a dataclass, inherited ones too, that are followed by a docstring in the source."""
    documented: set[str] = set()
    for cls in config.__mro__[:-1]:
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                documented.add(field.target.id)
    return documented


def _check_search_space(method: type[Method]) -> None:
    unknown = set(method.recipe) - RECIPE_FIELDS
    require(not unknown, f"recipe names {some(unknown)}, which is no recipe field: {some(set(RECIPE_FIELDS))}")
    knobs = {f.name for f in dataclasses.fields(method.Config)}
    for key, values in method.search_space.items():
        require(key in RECIPE_FIELDS | knobs, f"search_space key {key!r} is neither a recipe nor a config field")
        require(isinstance(values, tuple) and len(values) > 0, f"search_space[{key!r}] is not a tuple of values")
        for value in values if key in knobs else ():
            method.configure({key: value})
