"""YAML files with the line of every key, so that an error can name file and line, and without YAML's surprises.

What YAML 1.1 reads differently from how it looks (010 as eight, 1:30 as ninety, no as false) is refused unless it is
quoted; true, false, null and plainly written numbers mean what they say.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from suites.base import NOT_YET, SuiteError

TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 and -.5 as the numbers they are (YAML 1.1: texts) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                line = node.value[index][0].start_mark.line + 1
                raise SuiteError(f"{self.name}:{line}: key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?[eE][-+]?\d+|\.\d+([eE][-+]?\d+)?)$"),
    list("-+.0123456789"),
)

_SURPRISES = {
    r"[-+]?0[0-9_]+": "octal to YAML, or text",
    r"[-+]?0[bo][0-7_]+": "a number in one version of YAML and text in another",
    r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?": "a number in base 60 to YAML",
    r"[-+]?[\d.]*\d_[\d_.]*([eE][-+]?\d+)?": "a number without its underscores to YAML, or text",
    r"(?i)yes|no|on|off": "true or false to YAML",
    r"\d{4}-\d\d?-\d\d?([Tt ].*)?": "a date to YAML",
}
"""Plain scalars that YAML reads differently from how they look, and as what."""


def _surprise(node: yaml.Node) -> str:
    """What is wrong with a plain scalar; empty if nothing is."""
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return ""
    for pattern, meaning in _SURPRISES.items():
        if re.fullmatch(pattern, node.value):
            return f"{node.value!r} is {meaning}: write a plain number, true or false, or put text in quotes"
    return ""


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """A node and all below it, keys included."""
    yield node
    for part in node.value if isinstance(node, yaml.CollectionNode) else []:
        for child in part if isinstance(node, yaml.MappingNode) else [part]:
            yield from _nodes(child)


def scalar(text: str) -> Any:
    """The value of a text as it would be in a file. `SuiteError` if it is not YAML, or not read as it looks."""
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            return None
        for part in _nodes(node):
            if problem := _surprise(part):
                raise SuiteError(problem)
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise SuiteError(f"{text!r} is not valid YAML: {getattr(error, 'problem', error)}") from None


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A sentence that names the closest of `known`, or lists them all."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


class YamlFile:
    """A YAML mapping, its values, and their lines."""

    def __init__(self, path: Path, keys: Sequence[str], what: str, texts: Sequence[str] = ()) -> None:
        """Read `path`, a mapping whose keys are among `keys`; `what` names such a file in errors ("an experiment"). The
        values of the keys `texts` are always text, whatever they look like."""
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
            self._check(node, texts)
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
            if key not in keys and key in NOT_YET:
                raise SuiteError(f"{self.where(key)}: {key}: {NOT_YET[key]}")
            if key not in keys:
                raise SuiteError(f"{self.where(str(key))}: unknown key {key!r}. {did_you_mean(str(key), keys)}")

    def _check(self, node: yaml.MappingNode, texts: Sequence[str]) -> None:
        """`SuiteError` for a value that is not read as it looks."""
        for key, value in node.value:
            if key.value in texts and isinstance(value, yaml.ScalarNode) and value.tag != NULL:
                value.tag, value.style = TEXT, '"'
        for part in _nodes(node):
            if problem := _surprise(part):
                raise SuiteError(f"{self.path}:{part.start_mark.line + 1}: {problem}")

    @contextmanager
    def blamed(self, key: str, item: int | None = None) -> Iterator[None]:
        """Inside, a `SuiteError` is prefixed with `file:line: ` of a key, or of an item of its list."""
        try:
            yield
        except SuiteError as error:
            raise SuiteError(f"{self.where(key, item)}: {error}") from None

    def where(self, key: str, item: int | None = None) -> str:
        """`file:line` of a key, or of an item of its list."""
        if key not in self._nodes:
            return str(self.path)
        node, value = self._nodes[key]
        if item is not None and isinstance(value, yaml.SequenceNode) and item < len(value.value):
            node = value.value[item]
        return f"{self.path}:{node.start_mark.line + 1}"
