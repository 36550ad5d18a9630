"""The lists of the user's own data: splits that are missing are drawn, and training images for few-shot runs.

What is drawn depends on the images' names and a seed alone: each class's images are put in the order of a hash of their
names. So it is the same on every machine, in whatever order a file system lists them.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from suites.base import SuiteError
from suites.folders import write_list
from suites.own.found import Found, Names

LISTS = {"train": "train.txt", "val": "val.txt", "trainval": "trainval.txt", "test": "test.txt"}
FEW_SHOT = {"train": "train.{shots}-shot.seed-{split_seed}.txt", "val": "val.txt", "test": "test.txt"}
"""List file of each split; few-shot suites have a list for each number of shots and split seed."""

SPLIT_SEEDS = (0, 1, 2)
"""Of the few-shot lists, as in NOAH's."""

HELD_OUT = 5
"""One of so many images of each class is in a split that is drawn."""

NOTE_FILE = "OWN_SPLIT.txt"

Rows = list[tuple[str, int]]
"""Names of images with their labels."""


def shuffled(names: Iterable[str], seed: str) -> list[str]:
    """The names in an order that depends on them and the seed alone."""

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode(errors="surrogateescape")).digest()

    return sorted(names, key=key)


@dataclass(frozen=True)
class Lists:
    """The lists of what was found."""

    found: Found
    shots: tuple[int, ...] = ()
    """Images per class of the few-shot lists; empty for lists of all images."""

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """The splits that are not there and so are drawn from train."""
        return tuple(split for split in ("val", "test") if split not in self.found.names)

    @cached_property
    def splits(self) -> Names:
        """Images by split and class, drawn splits among them."""
        names = {split: dict(by_class) for split, by_class in self.found.names.items()}
        names |= {split: {} for split in self.drawn}
        for label, images in self.found.names["train"].items():
            each = max(1, round(len(images) / HELD_OUT))
            if len(images) <= len(self.drawn) * each:
                what = f"{' and '.join(self.drawn)} are" if len(self.drawn) > 1 else f"{self.drawn[0]} is"
                raise SuiteError(
                    f"{self.found.path}: class {label!r} has {len(images)} image{'s' * (len(images) > 1)}, and needs "
                    f"{len(self.drawn) * each + 1}, for {what} drawn from them"
                )
            order = shuffled(images, "split 0")
            for number, split in enumerate(reversed(self.drawn)):  # so test is the same whether val is drawn or not
                names[split][label] = order[number * each : (number + 1) * each]
            names["train"][label] = order[len(self.drawn) * each :]
        return names

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of images per split."""
        return {split: sum(map(len, self.splits[split].values())) for split in ("train", "val", "test")}

    def files(self) -> Iterator[tuple[str, Rows]]:
        """Each list file's name and rows. The images that are trained on are shuffled, for some methods look at the
        first of them."""
        label_of = {name: label for label, name in enumerate(self.found.classes)}
        train, val, test = (self.splits[split] for split in ("train", "val", "test"))

        def rows(by_class: dict[str, list[str]], seed: str = "") -> Rows:
            labels = {image: label_of[name] for name, images in by_class.items() for image in images}
            return [(image, labels[image]) for image in (shuffled(labels, seed) if seed else sorted(labels))]

        for shots in self.shots:
            if fewest := [name for name, images in train.items() if len(images) < shots]:
                count = len(train[fewest[0]])
                raise SuiteError(
                    f"{self.found.path}: shots={shots} is more than class {fewest[0]!r} has training images, {count}"
                )
            for seed in SPLIT_SEEDS:
                chosen = {name: shuffled(images, f"shots {seed}")[:shots] for name, images in train.items()}
                yield FEW_SHOT["train"].format(shots=shots, split_seed=seed), rows(chosen, f"shots {seed}")
        if not self.shots:
            yield LISTS["train"], (of_train := rows(train, "order"))
            yield LISTS["trainval"], of_train + rows(val, "order")
        yield LISTS["val"], rows(val)
        yield LISTS["test"], rows(test)

    @cached_property
    def digest(self) -> str:
        """sha256 over all lists, the class names, and what stands for images that are no files."""
        sha = hashlib.sha256(f"{self.found.classes}{self.found.stamp}\n".encode(errors="surrogateescape"))
        for file, rows in self.files():
            sha.update(f"{file}\n".encode())
            sha.update("".join(f"{name} {label}\n" for name, label in rows).encode(errors="surrogateescape"))
        return sha.hexdigest()

    @property
    def note(self) -> str:
        """What was drawn, and the digest of it all; empty if nothing was."""
        parts = [f"{' and '.join(self.drawn)} drawn from train, a fifth of each class each"] if self.drawn else []
        parts += ["training images drawn per class"] if self.shots else []
        return f"{', '.join(parts)} (lists {self.digest[:8]})" if parts else ""

    def write(self, folder: Path) -> None:
        """Lists, note, and images that are no files, below a folder."""
        for file, rows in self.files():
            write_list(folder / file, [name for name, _ in rows], [label for _, label in rows])
        if self.note:
            (folder / NOTE_FILE).write_text(f"{self.note}\n")
        if self.found.write_images:
            self.found.write_images(folder)
