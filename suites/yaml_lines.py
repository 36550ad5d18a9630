"""YAML files with the line of every key, so that an error can name file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from suites.base import SuiteError


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as the number it is (YAML 1.1 wants 1.0e-3) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise SuiteError(f"{self.name}:{line}: key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class YamlFile:
    """A YAML mapping, its values, and where they stand."""

    def __init__(self, path: Path, keys: Sequence[str], what: str) -> None:
        """Read `path`, a mapping with no keys but `keys`; `what` names such a file in errors ("an experiment")."""
        self.path = path
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"{path}: cannot be read ({error})") from None
        try:
            loader = _Loader(text)
            loader.name = str(path)
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise SuiteError(f"{path}:1: {what} is a mapping with the keys {', '.join(keys)}")
            self.values: dict[str, Any] = loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SuiteError(f"{path}:{line}: not valid YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise SuiteError(f"{path}:{line}: not valid YAML: a control character") from None
        except SuiteError:
            raise
        except (ValueError, RecursionError) as error:  # a date in the thirteenth month, nested too deep
            raise SuiteError(f"{path}: not valid YAML: {error}") from None
        self._nodes = {key.value: (key, value) for key, value in node.value}
        for key in self.values:
            if key not in keys:
                close = difflib.get_close_matches(str(key), keys, n=1, cutoff=0.5)
                hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(keys)}."
                raise SuiteError(f"{self.where(str(key))}: unknown key {key!r}. {hint}")

    def text(self, key: str) -> str:
        """The plain value of a key as it is written, before YAML makes a number of it."""
        return str(self._nodes[key][1].value)

    @contextmanager
    def blamed(self, key: str, item: int | None = None) -> Iterator[None]:
        """Inside, a `SuiteError` is given `file:line: ` of a key, or of the item of the list under it."""
        try:
            yield
        except SuiteError as error:
            raise SuiteError(f"{self.where(key, item)}: {error}") from None

    def where(self, key: str, item: int | None = None) -> str:
        """`file:line` of a key, or of the item of the list under it."""
        if key not in self._nodes:
            return str(self.path)
        node, value = self._nodes[key]
        if item is not None and isinstance(value, yaml.SequenceNode) and item < len(value.value):
            node = value.value[item]
        return f"{self.path}:{node.start_mark.line + 1}"
