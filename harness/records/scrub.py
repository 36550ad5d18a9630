"""Documents without paths, host names and user names, for records that leave the machine.

Nothing is looked for by its field. Every text of a document is searched for absolute paths, POSIX and Windows, of which
a file's name stays (`<path>/run.py`), and for names: of this user and this host, of the hosts and users that the
document's environment gives under a key such as `host` or `node`, and of the owners of home folders in its paths.
"""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.schema.spec import canonical_json

HOST, USER, PATH = "<host>", "<user>", "<path>"
"""What stands in place of what was found."""

NAMING_KEYS = {
    **dict.fromkeys(("host", "hostname", "node", "nodename", "machine"), HOST),
    **dict.fromkeys(("user", "username", "login", "logname", "account", "owner"), USER),
}
"""Keys of an environment whose value is a name, and which kind."""

ENVIRONMENT = "environment"
FREE_FORM = (ENVIRONMENT, "method_info")
"""Parts of a record whose keys are anybody's choice; the names in them are replaced too."""

NOBODYS = ("root", "localhost")
"""Names that tell nothing of a person or a machine."""

_ENDINGS = """
py so json yaml yml toml cfg txt list csv log md zip tar gz tgz xz npz npy pt pth bin ckpt safetensors onnx mat h5 hdf5
arrow parquet png jpg jpeg gif bmp webp tif tiff ppm pgm
"""
_KEPT_NAME = re.compile(rf"(?:.*[/\\])?([^/\\]+\.(?:{'|'.join(_ENDINGS.split())}))$", re.IGNORECASE)
"""A path whose last part is surely a file's name, not that of a user or a host."""

_PART = r"[^\s/\\'\"`<>|:;,]+"
_MORE = rf"(?:[\\/]+(?:{_PART}(?:[ ]{_PART}){{0,3}}(?=[\\/])|{_PART})?|(?:[ ]{_PART}){{1,3}}(?=[\\/]))*"
"""The rest of a path; parts between two separators may have spaces."""

_START = r"(?<![\w.<>)\]*/\\~-])(?:file://)?"
_TILDE = r"~(?:[A-Za-z_][\w.-]*)?(?=[\\/])"
_QUOTED = rf"(?<=['\"`])(?:file://)?(?:{_TILDE}|/|\\\\|[A-Za-z]:[\\/])[^'\"`\n]*(?=['\"`])"
_ADDRESS = r"(?P<scheme>\b(?!file:)[a-z][a-z0-9+.-]{0,15}://)(?P<whom>[^\s/@'\"]+@[^\s/'\"]+)?[^\s'\"]*"
_HOMES = re.compile(rf"[\\/](?:home\d?|homes|users)[\\/]+({_PART})|~([A-Za-z_][\w.-]*)(?=[\\/])", re.IGNORECASE)


class Scrubber:
    """Takes paths and names out of documents.

    `folders`: known ones, which are found even where their names have spaces or quotes.
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        known = {str(folder) for one in (*folders, _home(), Path.cwd()) for folder in (one.absolute(), one.resolve())}
        roots = "".join(f"{re.escape(one)}|" for one in sorted(known - {"/"}, key=len, reverse=True))
        start = rf"(?:{roots}{_TILDE}|/|\\\\+|[A-Za-z]:(?=[\\/]))"
        self._paths = re.compile(rf"{_ADDRESS}|(?P<path>{_QUOTED}|{_START}{start}(?:{_PART})?{_MORE})")
        self._here = _names_here()

    def document(self, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A record's document without its digest, scrubbed, and the places where something was replaced, such as
        `environment.host`."""
        texts = {name: canonical_json(part) for name, part in body.items()}
        with_paths = {name for name, text in texts.items() if _may_hold_paths(text)}
        work = self._work({name: body[name] for name in body if name in with_paths or name == ENVIRONMENT})
        parts = {
            name: work.part(part, name) if name in with_paths or work.may_name(texts[name]) else part
            for name, part in body.items()
        }
        return parts, list(dict.fromkeys(work.places))

    def reveals(self, body: Mapping[str, Any], text: str) -> bool:
        """Whether a text that belongs to the document holds what would be replaced."""
        return self._work(body).text(text) != text

    def _work(self, body: Mapping[str, Any]) -> _Work:
        return _Work(self._paths, self._here | dict(_names_in(body)))


def _may_hold_paths(text: str) -> bool:
    """Whether a part of a document, as JSON in ASCII, is worth a closer look: most are numbers under a few names. Any
    path has one of these characters, and so has the JSON of any text with quotes or letters beyond ASCII."""
    return "/" in text or "\\" in text or "~" in text


class _Work:
    """One document's scrubbing."""

    def __init__(self, paths: re.Pattern[str], names: Mapping[str, str]) -> None:
        self.places: list[str] = []
        self._paths = paths
        self._kinds = {name.casefold(): kind for name, kind in names.items()}
        self._words = _words(frozenset(names))

    def may_name(self, text: str) -> bool:
        """Whether JSON in ASCII may hold a name; of one with other letters `_may_hold_paths` knows."""
        small = text.lower()
        return any(name in small for name in self._kinds)

    def part(self, value: Any, name: str) -> Any:
        """A part of the document, by its name."""
        return self._value(value, name, name in FREE_FORM)

    def _value(self, value: Any, place: str, free: bool) -> Any:
        if isinstance(value, str):
            scrubbed = self.text(value)
            if scrubbed != value:
                self.places.append(place)
            return scrubbed
        if isinstance(value, dict):
            return self._mapping(value, place, free)
        if isinstance(value, list) and any(isinstance(one, str | list | dict) for one in value):
            return [self._value(one, place, free) for one in value]
        return value

    def _mapping(self, values: dict[str, Any], place: str, free: bool) -> dict[str, Any]:
        scrubbed: dict[str, Any] = {}
        for key, value in values.items():
            name = self.text(key) if free else self._paths.sub(_without_path, key)
            if name != key:
                self.places.append(f"a key of {place}")
            while name in scrubbed:
                name += "'"
            scrubbed[name] = self._value(value, f"{place}.{name}", free)
        return scrubbed

    def text(self, text: str) -> str:
        """The text without paths and names."""
        return self._words.sub(lambda found: self._kinds[found[0].casefold()], self._paths.sub(_without_path, text))


def _without_path(found: re.Match[str]) -> str:
    path = found["path"]
    if path is None:  # an address of the net, which stays but for whose it is
        return found[0].replace(found["whom"], f"{USER}@{HOST}") if found["whom"] else found[0]
    bare = path.rstrip(".,;:)]}")
    if not bare.strip("/\\"):  # nothing but separators
        return path
    name = _KEPT_NAME.match(bare)
    return f"{PATH}/{name[1]}{path[len(bare) :]}" if name else f"{PATH}{path[len(bare) :]}"


@lru_cache
def _words(names: frozenset[str]) -> re.Pattern[str]:
    """Any of the names as a whole word, in small letters or capitals."""
    words = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    return re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])" if words else r"(?!)", re.IGNORECASE)


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 (which fails where there is no home)


def _names_here() -> dict[str, str]:
    """The names of this host and this user."""
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")} | {_home().name}
    with suppress(OSError, KeyError):  # a container's user may have no name
        users.add(getpass.getuser())
    return dict(_kept([*(_labels(socket.gethostname())), *((user, USER) for user in users)]))


def _names_in(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names that a document's environment gives, and those of home folders in its paths."""
    found: list[tuple[str, str]] = []
    for _, text in _texts(dict(body), ""):
        found += [((home or tilde).rstrip(".)]}"), USER) for home, tilde in _HOMES.findall(text)]
    for key, text in _texts(body.get(ENVIRONMENT) or {}, ""):
        kind = NAMING_KEYS.get(key.casefold())
        found += _labels(text) if kind == HOST else [(text, USER)] * (kind == USER)
    return _kept(found)


def _kept(found: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((name, kind) for name, kind in found if len(name) > 1 and name.casefold() not in NOBODYS)


def _labels(host: str) -> list[tuple[str, str]]:
    """A host's full name and its first part."""
    return [(host, HOST), (host.partition(".")[0], HOST)]


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text in a value, keys too, with the key that it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield "", name
            yield from _texts(one, name)
    elif isinstance(value, list) and any(isinstance(one, str | list | dict) for one in value):
        for one in value:
            yield from _texts(one, key)
