"""Do a task's lists belong together? `trainval` is `train` and `val`: the same images with the same labels.

Where `trainval` names the files that `train` and `val` name, paths tell. NOAH's script writes each image of
`trainval` anew: such copies are known by size and end of the file, which costs a look at each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.data.copies import Listed, end_digest, more
from harness.data.lists import Entry, real_paths


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One way in which the lists contradict each other."""

    text: str
    """`file:line: what is wrong`, for the first image of its kind."""

    certain: bool = True
    """False where images may be the same, encoded in another way."""


@dataclass(frozen=True, slots=True)
class _Line:
    file: Path
    entry: Entry
    image: str | bytes
    """Its path, or what it shares with its copies."""

    @property
    def is_there(self) -> bool:
        """Whether there is a file, in lists that name none in common."""
        return isinstance(self.image, bytes)

    def __str__(self) -> str:
        return f"{self.file}:{self.entry.line}"


def disagreements(lists: Mapping[str, Listed]) -> Iterator[Disagreement]:
    """How `train`, `val` and `trainval` contradict each other where a task has all three; one of each kind."""
    if not {"train", "val", "trainval"} <= lists.keys():
        return
    parts, whole, shared = _lines(lists)
    mine, theirs = _by_image(whole), _by_image(parts)
    both = [(lines, theirs[image]) for image, lines in mine.items() if image in theirs]
    if wrong := [(a, b) for a, b in both if _labels(a).keys() != _labels(b).keys()]:
        (here, *_), (there, *_) = wrong[0]
        what = f"{here.entry.name} has label {here.entry.label} here and {there.entry.label} in {there}"
        yield Disagreement(f"{here}: {what}{more(wrong)}")
    if wrong := [(a, b) for a, b in both if _labels(a).keys() == _labels(b).keys() and _labels(a) != _labels(b)]:
        lines, others = wrong[0]
        what = f"{lines[0].entry.name} stands here {len(lines)} times and {len(others)} times in {_names(lists)}"
        yield Disagreement(f"{lines[0]}: {what}{more(wrong)}")
    certain = shared or _labels(whole) != _labels(parts)
    only = [lines[0] for image, lines in mine.items() if image not in theirs and (certain or lines[0].is_there)]
    lost = [lines[0] for image, lines in theirs.items() if image not in mine and (certain or lines[0].is_there)]
    if only:
        what = f"{only[0].entry.name} is in neither {_names(lists, 'nor')}{more(only)}"
        yield Disagreement(f"{only[0]}: {what}", certain)
    if lost:
        what = f"{lost[0].entry.name} is not in {lists['trainval'][0].path.name}{more(lost)}"
        yield Disagreement(f"{lost[0]}: {what}", certain)


def _lines(lists: Mapping[str, Listed]) -> tuple[list[_Line], list[_Line], bool]:
    """Lines of `train` and `val`, lines of `trainval`, and whether these name a file in common."""
    paths = {split: real_paths(*lists[split]) for split in ("train", "val", "trainval")}
    parts = {*paths["train"], *paths["val"]}
    common = parts.intersection(paths["trainval"])
    lines: dict[str, list[_Line]] = {}
    for split, found in paths.items():
        source, entries = lists[split]
        lines[split] = [
            _Line(source.path, entry, path if path in common else end_digest(Path(path)) or path)
            for path, entry in zip(found, entries, strict=True)
        ]
    return lines["train"] + lines["val"], lines["trainval"], bool(common)


def _by_image(lines: Iterable[_Line]) -> dict[str | bytes, list[_Line]]:
    found: dict[str | bytes, list[_Line]] = {}
    for line in lines:
        found.setdefault(line.image, []).append(line)
    return found


def _labels(lines: Iterable[_Line]) -> Counter[int]:
    return Counter(line.entry.label for line in lines)


def _names(lists: Mapping[str, Listed], word: str = "and") -> str:
    return f"{lists['train'][0].path.name} {word} {lists['val'][0].path.name}"
