"""The same image under two names: hard links, byte-for-byte copies and, once images are decoded, whatever has the same
pixels. A copy of a test image in the training set is a leak that no list shows."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from harness.data.lists import Entry, ImageList
from harness.data.problems import Problem

END = 4096
"""Bytes at the end of a file that distinguish it from others of its size."""

LIKENESS_BYTES = 32
"""Of what is the same for copies: `end_digest` or, after decoding, the digest of all pixels."""

WHOLE = 0.5
"""From this share on, a split repeats another one; official sets hold 1 % twice (dSprites, whose squares look the same
every quarter turn)."""


def more(items: Sequence[object]) -> str:
    """How many there are besides the first, in words."""
    return f" (and {len(items) - 1} more such images)" if len(items) > 1 else ""


def end_digest(path: str | Path) -> bytes:
    """Digest of a file's size and end: the same for copies, and hardly ever for other images. Empty if the file cannot
    be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (of millions of files)
            return digest_of(*end_of(file))
    except (OSError, ValueError):
        return b""


def end_of(file: BinaryIO) -> tuple[int, bytes]:
    """Size and last `END` bytes of an open file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END))
    return size, file.read()


def digest_of(size: int, end: bytes) -> bytes:
    """`end_digest` from what `end_of` gives."""
    return hashlib.sha256(f"{size} ".encode() + end).digest()


def identities(paths: Iterable[str], likeness: NDArray[np.uint8], deep: bool) -> dict[str, bytes]:
    """Images that have a copy, each with something that all its copies share: the digest of its bytes, which are read
    only of files whose size and end match another file's; or of its pixels, if these were decoded (`deep`).

    `likeness`: of each of `paths`, uint8 [N, `LIKENESS_BYTES`], zeros if something is wrong.
    """
    starts = likeness.view(np.int64)[:, 0]
    _, group, counts = np.unique(starts, return_inverse=True, return_counts=True)
    alike: dict[bytes, list[str]] = {}
    for path, own in compress(zip(paths, likeness, strict=True), (counts[group] > 1) & likeness.any(axis=1)):
        alike.setdefault(own.tobytes(), []).append(path)
    digests: dict[tuple[int, int], bytes] = {}

    def digest(path: Path) -> bytes:
        status = path.stat()
        inode = status.st_dev, status.st_ino
        if inode not in digests:
            with path.open("rb") as file:
                digests[inode] = hashlib.file_digest(file, "sha256").digest()
        return digests[inode]

    copied = [(path, own) for own, copies in alike.items() if len(copies) > 1 for path in copies]
    return {path: own if deep else digest(Path(path)) for path, own in copied}


def between(
    splits: tuple[str, str], first: ImageList, second: ImageList, identity: Mapping[str, bytes]
) -> Iterator[Problem]:
    """Images of a first list that are copies of images of a second, except files that both name: an error if the larger
    part of either list is in the other."""
    copies = {key: (path, entry) for path, key, entry in _with_copies(second, identity)}
    matches = [
        (key, entry, copies[key][1])
        for path, key, entry in _with_copies(first, identity)
        if key in copies and os.path.realpath(path) != os.path.realpath(copies[key][0])
    ]
    if not matches:
        return
    keys = {key for key, _, _ in matches}
    back = sum(key in keys for _, key, _ in _with_copies(second, identity))
    size, other_size = len(first.entries), len(second.entries)
    _, entry, twin = matches[0]
    what = f"is a copy of {twin.name} in {second.where(twin)}"
    counts = f"{len(matches)} of {size} images of {splits[0]} and {back} of {other_size} of {splits[1]} are such copies"
    differing = sum(entry.label != twin.label for _, entry, twin in matches)
    labels = f", {differing} with another label" if differing else ""
    is_whole = max(len(matches) / size, back / other_size) >= WHOLE
    yield Problem(f"{first.says(entry, what)}; {counts}{labels}", "error" if is_whole else "warning")


def two_labels(images: ImageList, identity: Mapping[str, bytes]) -> Iterator[Problem]:
    """Images of a list whose label differs from that of an earlier copy in it."""
    first: dict[bytes, tuple[str, Entry]] = {}
    wrong = []
    for path, key, entry in _with_copies(images, identity):
        twin_path, twin = first.setdefault(key, (path, entry))
        if entry.label != twin.label and os.path.realpath(path) != os.path.realpath(twin_path):
            wrong.append((entry, twin))
    if wrong:
        entry, twin = wrong[0]
        what = f"has label {entry.label}, and its copy {twin.name} in line {twin.line} {twin.label}"
        yield Problem(f"{images.says(entry, what)}{more(wrong)}", "warning")


def _with_copies(images: ImageList, identity: Mapping[str, bytes]) -> list[tuple[str, bytes, Entry]]:
    lines = zip(images.paths, images.entries, strict=True)
    return [(path, identity[path], entry) for path, entry in lines if path in identity]
