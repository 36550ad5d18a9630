"""Names to methods. A file in this folder that holds a `Method` subclass with a `name` is registered by being there."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import methods
from methods.base import Method, MethodError, did_you_mean
from methods.blocks import kind

ENTRY_POINT_GROUP = "sctbench.methods"


def _defined_in(module: ModuleType) -> list[type[Method]]:
    """Concrete methods that a module itself defines (not those it imports)."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Method)]
    return [c for c in classes if c.__module__ == module.__name__ and "name" in vars(c)]


@cache
def all_methods() -> dict[str, type[Method]]:
    """Every registered method by name, sorted: this folder's files, then installed entry points."""
    found: dict[str, type[Method]] = {}
    for info in pkgutil.walk_packages(methods.__path__, "methods."):
        for cls in _defined_in(importlib.import_module(info.name)):
            if cls.name in found:
                raise MethodError(f"two methods are named {cls.name!r}: {found[cls.name]} and {cls}")
            found[cls.name] = cls
    for point in entry_points(group=ENTRY_POINT_GROUP):
        cls = _installed(point)
        if cls.name in found:
            raise MethodError(f"entry point {point.value}: a method named {cls.name!r} exists already")
        found[cls.name] = cls
    titles = [cls.title for cls in found.values()]
    for cls in found.values():
        if titles.count(cls.title) > 1:
            raise MethodError(f"two methods have the title {cls.title!r}, which tables could not tell apart")
    return dict(sorted(found.items()))


def _installed(point: EntryPoint) -> type[Method]:
    """The method class that another package's entry point names."""
    try:
        cls = point.load()
    except Exception as error:  # whatever the package does on import, the user is told whose fault it is
        raise MethodError(f"entry point {point.value} cannot be loaded: {type(error).__name__}: {error}") from None
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise MethodError(f"entry point {point.value} is not a class derived from methods.base.Method")
    return cls


_external: dict[str, tuple[str, type[Method]]] = {}
"""Methods loaded from files by name, with the reference `path/to/file.py:ClassName` that they came from."""


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name that no other file has: two folders may each hold a `method.py`."""
    name = f"sctbench_external_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MethodError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: the message names file and reason
        raise MethodError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from None
    return module


def add_file(reference: str) -> type[Method]:
    """Make the method `path/to/file.py:ClassName` known under its own name in this process, and return it."""
    file, _, class_name = reference.rpartition(":")
    path = Path(file).expanduser().resolve()
    reference = f"{path}:{class_name}"
    for known_reference, cls in _external.values():
        if known_reference == reference:
            return cls
    if not path.is_file():
        raise MethodError(f"method {reference!r}: there is no file {path}")
    classes = {c.__name__: c for c in _defined_in(_load_file(path))}
    if class_name not in classes:
        raise MethodError(f"{path} has no method class {class_name!r}. {did_you_mean(class_name, list(classes))}")
    cls = classes[class_name]
    if cls.name in all_methods() or cls.name in _external:
        raise MethodError(f"{reference}: a method named {cls.name!r} exists already; give yours another name")
    _external[cls.name] = (reference, cls)
    return cls


def added_files() -> list[str]:
    """References that `add_file` took in, for handing on to a worker process."""
    return [reference for reference, _ in _external.values()]


def get(name: str) -> type[Method]:
    """The method class of that name, or for `path/to/file.py:ClassName`. Raises `MethodError` if unknown."""
    if ".py:" in name:
        return add_file(name)
    known = all_methods() | {key: cls for key, (_, cls) in _external.items()}
    if name not in known:
        raise MethodError(f"unknown method {name!r}. {did_you_mean(name, list(known))}")
    return known[name]


def parameters_on(method: Method, backbone: nn.Module) -> int:
    """Parameters that the configured method will train on this untouched backbone, head excluded.

    Needs the backbone's shapes alone. Raises `MethodError` where the method does not serve the backbone or a setting
    does not fit it.
    """
    if not method.can_serve(kind(backbone)):
        raise MethodError(f"method {method.name!r} serves {' and '.join(sorted(method.serves))}, not {kind(backbone)}")
    try:
        return method.expected_parameters(backbone)
    except MethodError as error:
        raise MethodError(f"method {method.name!r}: {error}") from None


def describe(method: type[Method], backbone: nn.Module) -> dict[str, Any]:
    """What a list of methods shows, with the parameters trained on the untouched `backbone`, or why it is refused."""
    parameters: int | str
    try:
        parameters = parameters_on(method(), backbone)
    except MethodError as refusal:
        parameters = str(refusal).removeprefix(f"method {method.name!r} ").removeprefix(f"method {method.name!r}: ")
    return {
        "name": method.name,
        "title": method.title,
        "family": method.family,
        "parameters": parameters,
        "identity_at_start": method.identity_at_start,
        "mergeable": method.mergeable,
        "serves": "+".join(sorted(method.serves)),
        "paper": method.paper,
    }
