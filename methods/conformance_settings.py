"""What a method must say about itself, and what must hold of every one of its settings, not of the defaults alone."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import torch

from methods.architectures import KINDS
from methods.base import Attachment, Method, MethodError
from methods.conformance_tools import (
    changed_names,
    copies,
    moved_by_merging,
    on_main_models,
    relative_gap,
    require,
    some,
)
from methods.kept import all_tensors
from methods.testbed import Attached, attach, model_for, small_model

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
    missing = [a for a in ("name", "title", "paper", "family") if not _is_text(getattr(method, a, None))]
    require(not missing, f"class attributes that are missing or no text: {', '.join(missing)}")
    abstract = sorted(getattr(method, "__abstractmethods__", ()))
    require(not abstract, f"methods that are missing: {', '.join(abstract)}")
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", method.name)), f"name {method.name!r} is not lower_case_with_bars")
    require(method.family in FAMILIES, f"family {method.family!r} is none of {FAMILIES}")
    require(bool(method.__doc__), "the class has no docstring")
    require(bool(method.serves) and method.serves <= set(KINDS), f"serves {set(method.serves)} is unknown")
    _check_config(method.Config)
    _check_search_space(method)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


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


@on_main_models
def check_resolved(method: type[Method], name: str) -> None:
    """The config that `resolve` gives is one of plain values, resolves to itself, and attaches to the same model."""
    model = small_model(name)
    before = copies(all_tensors(model))
    resolved = method().resolve(model)
    require(not changed_names(before, all_tensors(model)), "resolve changed the model")
    require(isinstance(resolved, method.Config), f"resolve gives a {type(resolved).__name__}, no Config of the method")
    read = method.configure(json.loads(json.dumps(dataclasses.asdict(resolved)))).config
    require(read == resolved, f"the resolved config is another one when a record is read: {read} instead of {resolved}")
    twice = method(resolved).resolve(model)
    require(twice == resolved, f"resolved twice, {resolved} becomes {twice}")
    expected, count = (method(c).expected_parameters(small_model(name)) for c in (None, resolved))
    require(count == expected, f"resolved, expected_parameters says {count} instead of {expected}")
    plain, same = (all_tensors(attach(method, name, config=config).model) for config in (None, resolved))
    apart = set(plain) ^ set(same) or changed_names(plain, same)
    require(not apart, f"resolved, it attaches to another model: {some(set(apart))}")


def check_settings(method: type[Method]) -> None:
    """Counting, identity at the start and merging hold with other values of every setting, one at a time.

    Tried are the search space, a few numbers around the default, and for texts the words that the refusal of a wrong
    one names. What `configure`, `expected_parameters` or `attach` refuses is passed over.
    """
    plain = Attached(small_model(model_for(method)), Attachment(), 0.0, frozenset()).logits()
    for key, value in _other_settings(method):
        configured = method.configure({key: value})
        with contextlib.suppress(MethodError):
            expected = configured.expected_parameters(small_model(model_for(method)))
            attached = attach(method, config=configured.config)
            _check_setting(configured, f"with {key}={value!r}", attached, expected, plain)


def _check_setting(method: Method, with_: str, attached: Attached, expected: int, plain: torch.Tensor) -> None:
    trained = sum(p.numel() for p in attached.trained().values())
    require(trained == expected, f"{with_}, {trained} parameters are trained, expected_parameters says {expected}")
    gap = relative_gap(attached.logits(), plain)
    claimed = method.starts_at_identity()
    require(not claimed or gap <= 1e-5, f"{with_}, starts_at_identity() is True, but the logits move by {gap:.1e}")
    if attached.attachment.merge is None:
        require(not method.mergeable, f"{with_}, there is no merge, but mergeable is True")
        return
    attached.model.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attached.trained().values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    try:
        gap = moved_by_merging(attached, torch.float64)
    except RuntimeError:  # modules that compute in float32 whatever comes
        gap = moved_by_merging(attached, torch.float32)
    require(gap <= 1e-4, f"{with_}, the logits move by {gap:.1e} (relative) in merge")


def _other_settings(method: type[Method]) -> Iterator[tuple[str, Any]]:
    """Fields and values other than the default that `configure` takes."""
    default, hints = method().config, typing.get_type_hints(method.Config)
    for field in dataclasses.fields(method.Config):
        own = getattr(default, field.name)
        tried: list[Any] = []
        for value in [*method.search_space.get(field.name, ()), *_candidates(method, field.name, own, hints)]:
            with contextlib.suppress(MethodError):
                taken = getattr(method.configure({field.name: value}).config, field.name)
                if taken != own and taken not in tried:
                    tried.append(taken)
        yield from ((field.name, value) for value in tried)


def _candidates(method: type[Method], name: str, own: Any, hints: dict[str, Any]) -> list[Any]:
    """Values to try: of a number those around it, of a text the words in the refusal of a wrong one."""
    hint, item = hints[name], typing.get_args(hints[name])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(option for option in item if option is not types.NoneType)
    if hint is bool:
        return [not own]
    if hint is int:
        return [own * 2, 1] if own else [1, 2, 3]
    if hint is float:
        return [own / 2, 1.0] if own else [0.5]
    if hint is str or (typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is str):
        return _words_in_refusal(method, name)
    return [0, 1] if typing.get_origin(hint) is tuple and typing.get_args(hint)[0] is int else []


def _words_in_refusal(method: type[Method], name: str) -> list[str]:
    """Words of the message that refuses a wrong text; none if any text is taken."""
    try:
        method.configure({name: "?"})
    except MethodError as refusal:
        return list(dict.fromkeys(re.findall(r"[A-Za-z_][\w.+-]*\w", str(refusal))))
    return []


SETTING_CHECKS = {"resolved": check_resolved, "settings": check_settings}
