"""Copies of an image under other names: found by the check between splits, and under two labels."""

import os
import shutil

import pytest
from PIL import Image

from harness.data.check import check
from harness.data.lists import Roots
from tests import layouts

TASK = "svhn"


@pytest.fixture
def folder(tmp_path):
    return layouts.vtab(tmp_path, TASK)


def found(folder, deep=False):
    """Severity and text of each problem."""
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,), deep=deep)
    return [(problem.severity, problem.text.replace(f"{folder}/", "")) for problem in report.problems]


def encoded_again(old, new):
    with Image.open(old) as image:
        image.save(new, compress_level=0)


COPIES = {"a hard link": os.link, "copied bytes": shutil.copyfile, "encoded again": encoded_again}


def replace(copy, old, new):
    """Another image becomes a copy of `old`."""
    new.unlink()
    copy(old, new)


@pytest.mark.parametrize("way", COPIES)
def test_a_test_image_among_those_trained_on_is_a_warning(folder, way):
    replace(COPIES[way], folder / "images/test/000002.png", folder / "images/train/000004.png")
    ((severity, text),) = found(folder, deep=way == "encoded again")
    assert severity == "warning"
    assert text == (
        "train800val200.txt:5: images/train/000004.png is a copy of images/test/000002.png in test.txt:3; "
        "1 of 9 images of trainval and 1 of 6 of test are such copies, 1 with another label"
    )
    assert bool(found(folder)) == (way != "encoded again")


@pytest.mark.parametrize("way", COPIES)
def test_a_split_that_repeats_is_an_error(folder, way):
    for number in range(6):
        name = f"{number:06d}.png"
        replace(COPIES[way], folder / "images/train" / name, folder / "images/test" / name)
    ((severity, text),) = found(folder, deep=way == "encoded again")
    assert severity == "error" and "6 of 9 images of trainval and 6 of 6 of test are such copies" in text
    assert "another label" not in text


def test_all_of_a_small_split_within_a_large_one_is_an_error(tmp_path):
    folder = layouts.vtab(tmp_path, TASK, sizes=(6, 3, 60))
    for number in range(3):
        name = f"{number:06d}.png"
        replace(shutil.copyfile, folder / "images/train" / name, folder / "images/val" / name)
    errors = [text for severity, text in found(folder) if severity == "error" and "copy" in text]
    assert errors == [
        "train800.txt:1: images/train/000000.png is a copy of images/val/000000.png in val200.txt:1; "
        "3 of 6 images of train and 3 of 3 of val are such copies"
    ]


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_under_another_label_in_the_same_list(folder, way):
    replace(COPIES[way], folder / "images/test/000000.png", folder / "images/test/000004.png")
    assert found(folder, deep=way == "encoded again") == [
        ("warning", "test.txt:5: images/test/000004.png has label 1, and its copy images/test/000000.png in line 1 0")
    ]


def test_files_of_one_size_and_end_are_told_apart_by_all_their_bytes(folder):
    for split in ("train", "test"):
        Image.new("RGB", (60, 60)).save(folder / f"images/{split}/000000.png", compress_level=0)
    path = folder / "images/test/000000.png"
    path.write_bytes(path.read_bytes()[:5000] + b"\1" + path.read_bytes()[5001:])
    assert found(folder) == []


def test_images_listed_twice_are_no_copies(folder):
    """Two names of one file are another kind of error, which names each of them."""
    (folder / "images/test/000000.png").unlink()
    (folder / "images/test/000000.png").symlink_to(folder / "images/train/000000.png")
    assert all("is also in" in text for _, text in found(folder))


def test_a_link_under_another_label_is_the_same_image(folder):
    (folder / "linked.png").symlink_to(folder / "images/test/000000.png")
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join([*lines[:1], "linked.png 1", *lines[2:]]))
    assert found(folder) == [("error", "test.txt:2: linked.png has label 1 here and 0 in line 1")]
