"""Do a task's lists contradict each other? `trainval` is `train` and `val`, the same images with the same labels, and
splits that must be disjoint share no image.

Where `trainval` names the same files as `train` and `val`, paths tell. NOAH's script saves each image of `trainval` to
a file of its own: such copies are recognised by a file's size and its last bytes, which have to be read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

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
    parts, whole, shared = _lines(lists)
    in_whole, in_parts = _by_image(whole), _by_image(parts)
    both = [(lines, in_parts[image]) for image, lines in in_whole.items() if image in in_parts]
    if wrong := [(a, b) for a, b in both if _labels(a).keys() != _labels(b).keys()]:
        (here, *_), (there, *_) = wrong[0]
        yield Problem(here.says(f"has label {here.entry.label} here and {there.entry.label} in {there}{more(wrong)}"))
    if wrong := [(a, b) for a, b in both if _labels(a).keys() == _labels(b).keys() and _labels(a) != _labels(b)]:
        here, *again = wrong[0][0]
        times = f"is listed {1 + len(again)} times here and {len(wrong[0][1])} times in {' and '.join(names)}"
        yield Problem(here.says(f"{times}{more(wrong)}"))
    certain = shared or _labels(whole) != _labels(parts)
    for lines, others, where in (
        (in_whole, in_parts, f"in neither {' nor '.join(names)}"),
        (in_parts, in_whole, f"not in {lists['trainval'].file.path.name}"),
    ):
        only = [own[0] for image, own in lines.items() if image not in others and (certain or isinstance(image, bytes))]
        if only:
            yield Problem(only[0].says(f"is {where}{more(only)}"), "error" if certain else "warning")


def shared_images(images: ImageList, others: ImageList) -> Iterator[str]:
    """A message for each image that both lists name."""
    for path, entry in images.by_image.items():
        if path in others.by_image:
            yield images.says(entry, f"is also in {others.where(others.by_image[path])}")


def _lines(lists: Mapping[str, ImageList]) -> tuple[list[_Line], list[_Line], bool]:
    """Lines of `train` and `val`, lines of `trainval`, and whether these name a file in common."""
    parts = {*lists["train"].real_paths, *lists["val"].real_paths}
    common = parts.intersection(lists["trainval"].real_paths)
    train, val, trainval = (
        [
            _Line(lists[split], entry, path if path in common else end_digest(Path(path)) or path)
            for path, entry in zip(lists[split].real_paths, lists[split].entries, strict=True)
        ]
        for split in ("train", "val", "trainval")
    )
    return train + val, trainval, bool(common)


def _by_image(lines: Iterable[_Line]) -> dict[str | bytes, list[_Line]]:
    by_image: dict[str | bytes, list[_Line]] = {}
    for line in lines:
        by_image.setdefault(line.image, []).append(line)
    return by_image


def _labels(lines: Iterable[_Line]) -> Counter[int]:
    return Counter(line.entry.label for line in lines)
