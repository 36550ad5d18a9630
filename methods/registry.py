"""Names to methods. A file in this folder that holds a `Method` subclass with a `name` is registered by being there."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib.machinery import SOURCE_SUFFIXES, SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

import methods
from methods.architectures import kind
from methods.base import Method, MethodError, PluginWarning, did_you_mean
from methods.blocks import why_not_served
from methods.sources import digest_of

ENTRY_POINT_GROUP = "sctbench.methods"


def _defined_in(module: ModuleType) -> list[type[Method]]:
    """Concrete methods that a module itself defines (not those it imports)."""
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Method)]
    return [c for c in classes if c.__module__ == module.__name__ and "name" in vars(c)]


_refused: dict[str, str] = {}
"""What is wrong with methods of installed packages, by the names under which they may be asked for."""

_packages: dict[type[Method], str] = {}
"""Name and version of the package, of methods that came by an entry point."""


@cache
def all_methods() -> dict[str, type[Method]]:
    """Every registered method by name, sorted: this folder's files, then installed entry points.

    An entry point that cannot be used is left out with a `PluginWarning`; asking for its method is an error.
    """
    own = _own_methods()
    offered: dict[type[Method], EntryPoint] = {}
    _refused.clear()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            offered.setdefault(_installed(point), point)
        except MethodError as error:
            _refuse(point, str(error))
    for cls, point in offered.items():
        others = [other for other in (*own.values(), *offered) if other is not cls]
        if problem := clash(cls, others):
            _refuse(point, problem, cls.name)
        else:
            _packages[cls] = _package(point)
    usable = {cls.name: cls for cls in offered if cls in _packages}
    return dict(sorted((own | usable).items()))


def _own_methods() -> dict[str, type[Method]]:
    """The methods of this folder's files."""
    own: dict[str, type[Method]] = {}
    for info in pkgutil.walk_packages(methods.__path__, "methods."):
        for cls in _defined_in(importlib.import_module(info.name)):
            if problem := clash(cls, own.values()):
                raise MethodError(f"{cls}: {problem}")
            if cls.title in {other.title for other in own.values()}:
                raise MethodError(f"{cls}: the title {cls.title!r} is taken")
            own[cls.name] = cls
    return own


def clash(cls: type[Method], others: Iterable[type[Method]]) -> str:
    """What keeps a class from standing beside others; empty if nothing does. Equal titles do not: tables and figures
    then say the names too."""
    for other in others:
        if cls.name == other.name:
            where = f"{other.__module__}.{other.__qualname__}"
            return f"a method named {cls.name!r} exists already ({where}); give yours another name"
    return ""


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _refuse(point: EntryPoint, problem: str, *names: str) -> None:
    """Warn, and keep the reason for whoever asks for the method by one of its names."""
    message = f"package {_package(point)}, entry point {point.name} = {point.value}: {problem}"
    warnings.warn(f"{message}. Its method is left out", PluginWarning, stacklevel=3)
    _refused.update(dict.fromkeys((point.name, *names), message))


def _installed(point: EntryPoint) -> type[Method]:
    """The method class that another package's entry point names."""
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:  # whatever the package does on import, the user is told whose fault it is
        raise MethodError(f"cannot be loaded: {type(error).__name__}: {error}") from None
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise MethodError("not a class derived from methods.base.Method")
    require_declared(cls)
    return cls


def require_declared(cls: type[Method]) -> None:
    """Raise `MethodError` unless the class says what lists, records and tables print of every method."""
    for attribute in ("name", "title", "paper", "family"):
        value = getattr(cls, attribute, None)
        if not isinstance(value, str) or not value:
            raise MethodError(f"{cls.__qualname__}: class attribute {attribute!r} is missing or empty")


_external: dict[str, type[Method]] = {}
"""Methods loaded from files by the reference `path/to/file.py:ClassName` that they came from."""


class _Source(SourceFileLoader):
    """Compiles a file as it is now. Bytecode is told from its source by second and size alone: after a quick edit the
    code of before would run under the digest of the new one."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name that no other file has: two folders may each hold a `method.py`."""
    name = f"sctbench_external_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loader = _Source(name, str(path)) if path.suffix in SOURCE_SUFFIXES else None
    spec = importlib.util.spec_from_file_location(name, path, loader=loader) if loader else None
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
    if reference in _external:
        return _external[reference]
    if not path.is_file():
        raise MethodError(f"method {reference!r}: there is no file {path}")
    module = _load_file(path)
    classes = {c.__name__: c for c in _defined_in(module)}
    if class_name not in classes and isinstance(getattr(module, class_name, None), type):
        raise MethodError(f"{reference}: a method is a subclass of methods.base.Method with a `name` of its own")
    if class_name not in classes:
        raise MethodError(f"{path} has no method class {class_name!r}. {did_you_mean(class_name, list(classes))}")
    cls = classes[class_name]
    if problem := clash(cls, [*all_methods().values(), *_external.values()]):
        raise MethodError(f"{reference}: {problem}")
    _external[reference] = cls
    _digest(cls)  # of the file as it is now
    return cls


def added_files() -> list[str]:
    """References that `add_file` took in, for handing on to a worker process."""
    return list(_external)


def get(name: str) -> type[Method]:
    """The method class of that name, or for `path/to/file.py:ClassName`. Raises `MethodError` if unknown."""
    if ".py:" in name:
        return add_file(name)
    known = all_methods() | {cls.name: cls for cls in _external.values()}
    if name in _refused and name not in known:
        raise MethodError(f"method {name!r}: {_refused[name]}")
    if name not in known:
        raise MethodError(f"unknown method {name!r}. {did_you_mean(name, list(known))}")
    return known[name]


def source_digest(name: str) -> str:
    """sha256 over the source of the method of that name, see `methods.sources`; empty if it cannot be read."""
    return _digest(get(name))


@cache
def _digest(cls: type[Method]) -> str:
    return digest_of([cls, *(get(part) for part in cls.built_from)], _packages.get(cls, ""))


def parameters_on(method: Method, backbone: nn.Module) -> int:
    """Parameters that the configured method will train on this untouched backbone, head excluded.

    Needs the backbone's shapes alone. Raises `MethodError` where the method does not serve the backbone or a setting
    does not fit it.
    """
    try:
        served = method.can_serve(kind(backbone))
        expected = method.expected_parameters(backbone) if served else 0
    except MethodError as error:
        raise MethodError(f"method {method.name!r}: {error}") from None
    except Exception as error:  # a defect of the method must name it, and stop no list of methods
        raise MethodError(f"method {method.name!r}: {type(error).__name__}: {error}") from error
    if not served:
        raise MethodError(f"method {method.name!r} {why_not_served(method, backbone)}")
    return expected


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
