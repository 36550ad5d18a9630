"""Long lists: what they take in memory, and that looking for what is wrong does not depend on their length."""

import os
import tracemalloc

import numpy as np
import pytest

from harness.data.agreement import disagreements, shared_images
from harness.data.check import check
from harness.data.lists import Entries, Entry, ImageList, ListFile, Roots, read_list
from harness.data.located import refuse_unusable
from harness.errors import DataError
from harness.plans.experiment import select
from harness.plans.plan import expand
from suites import SUITES
from tests import layouts

LINES = 20_000
NAME = "train/n01440764/n01440764_{:06d}.JPEG"


@pytest.fixture
def long(tmp_path):
    """A list of many lines."""
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{NAME.format(i)} {i % 1000}\n" for i in range(LINES)))
    return path


def peak_of(work):
    """Bytes that a call took at most, and its result."""
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()


def listed(folder, entries, name="list.txt"):
    return ImageList(ListFile(folder / name, folder), Entries(Entry(*row, n) for n, row in enumerate(entries, start=1)))


def test_a_list_takes_little_more_than_its_names(long):
    peak, entries = peak_of(lambda: read_list(long, 1000))
    assert peak < LINES * (len(NAME) + 40)
    assert len(entries) == LINES and entries[-1] == Entry(NAME.format(LINES - 1), 999, LINES)
    assert entries[3:5] == [Entry(NAME.format(3), 3, 4), Entry(NAME.format(4), 4, 5)]
    assert list(entries) == [Entry(NAME.format(i), i % 1000, i + 1) for i in range(LINES)]
    with pytest.raises(IndexError):
        entries[LINES]


def test_comparing_lists_takes_numbers_and_not_paths(long, tmp_path):
    entries = read_list(long, 1000)
    images = [ImageList(ListFile(tmp_path / name, tmp_path), entries) for name in ("train", "val", "trainval")]
    lists = {"train": images[0], "val": ImageList(images[1].file, Entries()), "trainval": images[2]}
    peak, problems = peak_of(lambda: list(disagreements(lists)))
    assert problems == [] and peak < LINES * 200


@pytest.mark.parametrize("name", ["a b.png", "ü/ß.png", "x\ud800.png", "a\tb.png"])
def test_names_come_back_as_they_were(name):
    entries = Entries([Entry(name, 1, 7), Entry("other", 2, 8)])
    assert list(entries.names) == [name, "other"] and entries[0] == Entry(name, 1, 7) and entries.name(1) == "other"


def test_of_many_images_the_one_with_another_label_is_named(tmp_path):
    rows = [(f"{i}.png", i % 5) for i in range(3000)]
    wrong = [*rows[:2000], ("2000.png", 4), *rows[2001:]]
    lists = {"train": listed(tmp_path, rows[:2500]), "val": listed(tmp_path, rows[2500:], "val.txt")}
    (problem,) = disagreements(lists | {"trainval": listed(tmp_path, wrong, "whole.txt")})
    assert problem.text.endswith(f"whole.txt:2001: 2000.png has label 4 here and 0 in {tmp_path}/list.txt:2001")


def test_of_many_images_the_one_in_both_lists_is_named_however_it_is_spelled(tmp_path):
    (tmp_path / "there").symlink_to(tmp_path)
    first = listed(tmp_path, [(f"{i}.png", 0) for i in range(1000)])
    second = listed(tmp_path, [(f"{i}.png", 0) for i in range(1000, 1500)] + [("there/77.png", 0)], "b.txt")
    assert list(shared_images(first, second)) == [f"{tmp_path}/list.txt:78: 77.png is also in {tmp_path}/b.txt:501"]


def test_missing_images_are_reported_in_the_order_of_the_list(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "toys", layouts.TOYS)
    folder = layouts.toy(tmp_path)
    for name in ("images/train/4.png", "images/train/1.png", "images/val/0.png"):
        (folder / name).unlink()
    specs = expand(select({"suite": "toys", "methods": ["linear"], "backbone": "test_vit", "weights": "random"}))
    with pytest.raises(DataError, match=r"train800\.txt:2: .*images/train/1\.png: listed, but") as caught:
        refuse_unusable(layouts.TOYS, specs, Roots(data=tmp_path))
    assert "and 5 more like it" in str(caught.value) or "more like these" in str(caught.value)


def test_a_file_is_looked_at_once_whatever_the_number_of_lists(tmp_path):
    folder = layouts.toy(tmp_path)
    report = check(layouts.TOYS, Roots(data=tmp_path))
    assert report.images == 18 and report.problems == []
    os.truncate(folder / "images/val/2.png", 60)
    (problem,) = check(layouts.TOYS, Roots(data=tmp_path)).problems
    assert f"{folder}/val200.txt:3: {folder}/images/val/2.png: cannot be decoded" in problem.text


def test_labels_are_one_array():
    entries = Entries(Entry(str(i), i, i) for i in range(300))
    assert np.array_equal(entries.labels, np.arange(300)) and entries.labels.dtype == np.int32
