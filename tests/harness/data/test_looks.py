"""Looking at images in threads and in processes: the same is found."""

import os
import signal

import pytest

from harness.data import looks
from harness.data.lists import Entries, Entry, ImageList, ListFile
from harness.errors import HarnessError
from tests import layouts

COUNT = 300
"""More than two parts."""


@pytest.fixture
def lists(tmp_path):
    """Two lists of images, of which one is broken, one is missing, two are copies, and the second list has one of the
    first's once more."""
    for number in range(COUNT):
        layouts.image(tmp_path / f"{number}.png", number)
    (tmp_path / "7.png").write_bytes(b"no image")
    (tmp_path / "290.png").write_bytes((tmp_path / "3.png").read_bytes())

    def of(numbers):
        entries = Entries(Entry(f"{number}.png", 0, line) for line, number in enumerate(numbers, start=1))
        return ImageList(ListFile(tmp_path / "list", tmp_path), entries)

    return [of(range(200)), of([5, *range(200, COUNT + 1)])]


@pytest.mark.parametrize("deep", [False, True])
def test_the_same_is_found_in_processes(lists, monkeypatch, deep, tmp_path):
    seen = []
    in_threads = looks.look_at(lists, deep, lambda *at: seen.append(at))
    monkeypatch.setattr(looks, "PROCESSES_FROM", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert looks.look_at(lists, deep) == in_threads
    assert in_threads.images == COUNT + 1 and seen == [(128, COUNT + 1), (256, COUNT + 1), (COUNT + 1, COUNT + 1)]
    (broken, missing) = in_threads.problems
    assert broken[:2] == (0, 7) and broken[2].startswith("cannot be decoded")
    assert missing == (1, 101, "listed, but there is no such file")
    first, second = (str(tmp_path / name) for name in ("3.png", "290.png"))
    assert list(in_threads.identity) == [first, second]
    assert in_threads.identity[first] == in_threads.identity[second]


def test_lists_without_an_image(tmp_path):
    assert looks.look_at([]) == looks.Looks()
    assert looks.look_at([ImageList(ListFile(tmp_path / "list", tmp_path), Entries())]) == looks.Looks()


def _killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error(lists, monkeypatch):
    monkeypatch.setattr(looks, "PROCESSES_FROM", 1)
    monkeypatch.setattr(looks, "_look_at_part", _killed)
    with pytest.raises(HarnessError, match="was killed"):
        looks.look_at(lists)


def test_a_look_and_a_copy_by_its_end_are_of_the_same_bytes(lists):
    path = lists[0].file.folder / "5.png"
    assert looks.look(path).likeness == looks.copies.end_digest(path)
    assert not any(looks.look(lists[0].file.folder / "7.png").likeness)
