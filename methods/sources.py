"""Where a method's code lies, as a digest: a record keeps it, so that an edited method is not taken for its older self.

A method's source is the file that defines its class, and what that imports, whatever is imported there, and so on, as
far as it is the method's own:

- of a method here, the helpers of this folder (`layers.py`, `bottleneck.py`, `peft_library/common.py`, ...);
- of a file of the user's own, also every module that belongs to no installed package;
- of an installed package, the modules of that package, and its name and version.

The contract (`CONTRACT`), with what is known of each kind of backbone, is left out. It is the harness's side, as the
trainer is: every method would be another one after an edit that changes no number, and the record holds the state of
that code in its `environment`.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

CONTRACT = {
    f"methods.{name}" for name in ("architectures", "base", "blocks", "kept", "registry", "settings", "sources")
}
"""Modules, and folders of modules, that all methods share, and that are none's own."""

OURS = frozenset(("harness", "suites", "analysis", "slurm"))
"""Rooms of the harness, which methods do not import."""


def digest_of(classes: Iterable[type], version: str = "") -> str:
    """sha256 over the source of all of these classes, in hex; empty if it cannot be read (a class typed into a shell).

    It depends on what the files hold, and on no path. `version`: name and version of the package that they are from.
    """
    names, files = [], set[Path]()
    for cls in classes:
        own = _own_files(cls.__module__)
        if not own:
            return ""
        names.append(cls.__qualname__)
        files |= own
    try:
        contents = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    except OSError:
        return ""
    return hashlib.sha256("\n".join([version, *names, *contents]).encode()).hexdigest()


def _own_files(module: str) -> set[Path]:
    """The file of a module, and those of all modules of its own that it imports."""
    home, files, waiting = module.partition(".")[0], dict[str, Path](), [module]
    while waiting:
        name = waiting.pop()
        if name in files or _is_contract(name) or not (name == module or _is_own(name.partition(".")[0], home)):
            continue
        path = _file(name)
        if path is not None:
            files[name] = path
            waiting += _imported(path, name)
    return set(files.values()) if module in files else set()


def _is_contract(name: str) -> bool:
    return ".".join(name.split(".")[:2]) in CONTRACT


@cache
def _imported(path: Path, module: str) -> set[str]:
    """Names of what may be modules among the imports of a file, those inside of functions too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            names |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]  # importing `a.b.c` runs `a` and `a.b` too
    return {".".join(each[:count]) for each in parts for count in range(1, len(each) + 1)}


@cache
def _file(name: str) -> Path | None:
    """The Python file of a module; None if there is no such module, or none in Python."""
    spec = _spec(name)
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _spec(name: str) -> ModuleSpec | None:
    try:
        return getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):  # `a.b`, where b is a class of the module a
        return None


@cache
def _is_own(top: str, home: str) -> bool:
    """Whether modules of this top-level name are the own ones of a class whose module's is `home`."""
    if top in (home, "methods"):
        return True
    if top in OURS or top in sys.stdlib_module_names or home == "methods" or _is_installed(home):
        return False
    return not _is_installed(top)


def _is_installed(top: str) -> bool:
    """Whether a top-level module is not there, or comes with an installed package (in editable form, it does not)."""
    spec = _spec(top)
    if spec is None:
        return True
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    return any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)
