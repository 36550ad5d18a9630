"""Do a task's lists contradict each other? `trainval` is `train` and `val`, the same images with the same labels, and
splits that must be disjoint share no image.

Where `trainval` names the same files as `train` and `val`, paths tell. NOAH's script saves each image of `trainval` to
a file of its own: such copies are recognised by a file's size and its last bytes, which have to be read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.copies import end_digest, more
from harness.data.lists import Entry, ImageList
from harness.data.problems import Problem


@dataclass(frozen=True, slots=True)
class _Line:
    images: ImageList
    entry: Entry
    image: str | bytes
    """Its path or, in lists that name no file in common, what it has in common with its copies if there is a file."""

    def __str__(self) -> str:
        return self.images.where(self.entry)

    def says(self, what: str) -> str:
        return self.images.says(self.entry, what)


def disagreements(lists: Mapping[str, ImageList]) -> Iterator[Problem]:
    """How `train`, `val` and `trainval` contradict each other, where a task has all three: the first of each kind. A
    warning where images may be the same, encoded in another way."""
    if not {"train", "val", "trainval"} <= lists.keys():
        return
    names = [lists[split].file.path.name for split in ("train", "val")]
    train, val, trainval = (lists[split] for split in ("train", "val", "trainval"))
    keys, labels = np.r_[train.keys, val.keys], np.r_[train.entries.labels, val.entries.labels]
    unequal = _unequal(keys, labels, trainval)
    if not len(unequal):
        return
    common = np.intersect1d(keys, trainval.keys)
    certain = len(common) > 0 or not np.array_equal(np.sort(labels), np.sort(trainval.entries.labels))
    parts = [*_lines(train, unequal, common), *_lines(val, unequal, common)]
    in_whole, in_parts = _by_image(_lines(trainval, unequal, common)), _by_image(parts)
    both = [(lines, in_parts[image]) for image, lines in in_whole.items() if image in in_parts]
    if wrong := [(a, b) for a, b in both if _labels(a).keys() != _labels(b).keys()]:
        (here, *_), (there, *_) = wrong[0]
        yield Problem(here.says(f"has label {here.entry.label} here and {there.entry.label} in {there}{more(wrong)}"))
    if wrong := [(a, b) for a, b in both if _labels(a).keys() == _labels(b).keys() and _labels(a) != _labels(b)]:
        here, *again = wrong[0][0]
        times = f"is listed {1 + len(again)} times here and {len(wrong[0][1])} times in {' and '.join(names)}"
        yield Problem(here.says(f"{times}{more(wrong)}"))
    for lines, others, where in (
        (in_whole, in_parts, f"in neither {' nor '.join(names)}"),
        (in_parts, in_whole, f"not in {lists['trainval'].file.path.name}"),
    ):
        only = [own[0] for image, own in lines.items() if image not in others and (certain or isinstance(image, bytes))]
        if only:
            yield Problem(only[0].says(f"is {where}{more(only)}"), "error" if certain else "warning")


def shared_images(images: ImageList, others: ImageList) -> Iterator[str]:
    """A message for each image that both lists name."""
    both = np.intersect1d(images.keys, others.keys)
    if not len(both):
        return
    theirs = dict(others.at(np.isin(others.keys, both)))
    for path, entry in dict(images.at(np.isin(images.keys, both))).items():
        if path in theirs:
            yield images.says(entry, f"is also in {others.where(theirs[path])}")


def _unequal(keys: NDArray[np.int64], labels: NDArray[np.int32], others: ImageList) -> NDArray[np.int64]:
    """Keys of the images that do not occur equally often with the same labels here and in another list, in ascending
    order. Of millions of images these are all that has to be looked at one by one."""
    sign = np.repeat([1, -1], [len(keys), len(others.keys)])
    keys, labels = np.r_[keys, others.keys], np.r_[labels, others.entries.labels]
    order = np.lexsort((labels, keys))
    keys, labels, sign = keys[order], labels[order], sign[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (labels[1:] != labels[:-1])][: len(keys)])
    if not len(starts):
        return keys
    return np.unique(keys[starts[np.add.reduceat(sign, starts) != 0]])


def _lines(images: ImageList, chosen: NDArray[np.int64], common: NDArray[np.int64]) -> Iterator[_Line]:
    """The lines of images with one of the keys `chosen`. What all lists name by the same file is in `common`."""
    numbers = np.flatnonzero(np.isin(images.keys, chosen))
    for number, is_common in zip(numbers.tolist(), np.isin(images.keys[numbers], common).tolist(), strict=True):
        path = images.real_path(number)
        yield _Line(images, images.entries[number], path if is_common else end_digest(path) or path)


def _by_image(lines: Iterable[_Line]) -> dict[str | bytes, list[_Line]]:
    by_image: dict[str | bytes, list[_Line]] = {}
    for line in lines:
        by_image.setdefault(line.image, []).append(line)
    return by_image


def _labels(lines: Iterable[_Line]) -> Counter[int]:
    return Counter(line.entry.label for line in lines)
