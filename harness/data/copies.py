"""The same image under two names: hard links and byte for byte copies, and after decoding whatever has the same
pixels. A copy of a test image among those that are trained on is a leak that no list shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.lists import Entry, ListFile, real_paths

Listed = tuple[ListFile, Sequence[Entry]]
"""A list and what is in it."""

END = 4096
"""Bytes at the end of a file that tell it from others of its size."""

WHOLE = 0.5
"""From this share on, a split repeats another one; what official sets hold twice is 1 % (dSprites, whose squares look
the same every quarter turn)."""


def more(found: Sequence[object]) -> str:
    """Words for how many there are beside the first."""
    return f" (and {len(found) - 1} more such images)" if len(found) > 1 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a look at an image file found."""

    problem: str | None = None
    """What is wrong with it."""

    likeness: bytes = b""
    """The same for copies: `end_digest`, or after decoding the digest of all pixels. Empty where something is wrong."""


def end_digest(path: Path) -> bytes:
    """Digest of a file's size and end: the same for copies, and for other images hardly ever. Empty if the file
    cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END))
            return hashlib.sha256(f"{size} ".encode() + file.read()).digest()
    except (OSError, ValueError):
        return b""


def identities(looks: Mapping[Path, Look], deep: bool) -> dict[Path, bytes]:
    """Images that have a copy, each with what is the same for all its copies: the digest of its bytes, which are read
    of files alone whose size and end are those of another one; or of its pixels, if these were looked at (`deep`)."""
    alike: dict[bytes, list[Path]] = {}
    for path, look in looks.items():
        if look.likeness:
            alike.setdefault(look.likeness, []).append(path)
    read: dict[tuple[int, int], bytes] = {}

    def digest(path: Path) -> bytes:
        status = path.stat()
        inode = status.st_dev, status.st_ino
        if inode not in read:
            with path.open("rb") as file:
                read[inode] = hashlib.file_digest(file, "sha256").digest()
        return read[inode]

    found = [path for paths in alike.values() if len(paths) > 1 for path in paths]
    return {path: looks[path].likeness if deep else digest(path) for path in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Images of one list that are copies of images of another one."""

    pairs: list[tuple[Entry, Entry]]
    """Each such image of the one list, with a copy in the other."""

    back: int
    """How many images of the other list have a copy in the one."""

    sizes: tuple[int, int]
    """Images of the one list and of the other."""

    @property
    def whole(self) -> bool:
        """Whether one of the two lists repeats in the other."""
        return max(len(self.pairs) / self.sizes[0], self.back / self.sizes[1]) >= WHOLE

    def words(self, one: str, other: str) -> str:
        """How many there are, of two splits of these names."""
        counts = f"{len(self.pairs)} of {self.sizes[0]} images of {one} and {self.back} of {self.sizes[1]} of {other}"
        labels = sum(entry.label != copy.label for entry, copy in self.pairs)
        return f"such are {counts}" + (f", {labels} with another label" if labels else "")


def between(one: Listed, other: Listed, identity: Mapping[Path, bytes]) -> Repeats | None:
    """Copies among the images of two lists, files left out that both lists name; None if there are none."""
    mine, theirs = _known(one, identity), _known(other, identity)
    copies = {key: (path, entry) for path, key, entry in theirs}
    pairs = [
        (entry, copies[key][1])
        for path, key, entry in mine
        if key in copies and os.path.realpath(path) != os.path.realpath(copies[key][0])
    ]
    keys = {identity[one[0].folder / entry.name] for entry, _ in pairs}
    back = sum(key in keys for _, key, _ in theirs)
    return Repeats(pairs=pairs, back=back, sizes=(len(one[1]), len(other[1]))) if pairs else None


def two_labels(listed: Listed, identity: Mapping[Path, bytes]) -> list[tuple[Entry, Entry]]:
    """Images of a list that have another label than an earlier copy in it, with that copy."""
    first: dict[bytes, Entry] = {}
    pairs = [(entry, first.setdefault(key, entry)) for _, key, entry in _known(listed, identity)]
    found = [(entry, copy) for entry, copy in pairs if entry.label != copy.label]
    return [pair for pair in found if len(set(real_paths(listed[0], pair))) == 2]


def _known(listed: Listed, identity: Mapping[Path, bytes]) -> list[tuple[Path, bytes, Entry]]:
    source, entries = listed
    paths = [(source.folder / entry.name, entry) for entry in entries]
    return [(path, identity[path], entry) for path, entry in paths if path in identity]
