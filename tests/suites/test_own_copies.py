"""Copies that the package `datasets` saved."""

import io
import sys

import pytest
from PIL import Image as Pillow

from suites.base import SuiteError
from suites.own import read_suite

NAMES = ("dog", "cat")
FILES = 10
"""Of a copy's images those beyond are named by their path, and not held in the copy."""


def jpeg(number):
    out = io.BytesIO()
    Pillow.new("L", (8, 8), number).save(out, "JPEG")
    return out.getvalue()


def table(folder, count, label=None, image=None):
    """A table of images and labels as the package makes it."""
    import datasets  # takes seconds, and every process of the tests reads all files of tests

    def cell(number):
        if number < FILES:
            return {"bytes": jpeg(number), "path": None}
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(number))
        return {"bytes": None, "path": str(path)}

    kinds = {"image": image or datasets.Image(), "label": label or datasets.ClassLabel(names=list(NAMES))}
    own = {"image": list(range(count)) if image else [cell(number) for number in range(count)]}
    own["label"] = [[number % 2] if label else number % 2 for number in range(count)]
    return datasets.Dataset.from_dict(own, features=datasets.Features(kinds))


@pytest.fixture
def saved(tmp_path):
    """Saves a table, or tables by split, as the package does."""
    import datasets

    def save(content):
        data = datasets.DatasetDict(content) if isinstance(content, dict) else content
        data.save_to_disk(tmp_path / "copy")
        return tmp_path / "copy"

    return save


def built(suite, folder):
    """The bytes of each image, by its name, of all lists that were written."""
    (task,) = suite.tasks
    task.build(folder)
    names = [line.split()[0] for file in folder.glob("*.txt") for line in file.open() if "_" not in line]
    return {name: (folder / name).read_bytes() for name in names if name.startswith("images/")}


@pytest.mark.parametrize("split", ["validation", "val"])
def test_a_copy_becomes_files_with_its_own_bytes_and_labels(saved, tmp_path, split):
    suite = read_suite(saved({"train": table(tmp_path, 12), split: table(tmp_path, 4), "test": table(tmp_path, 6)}))
    assert suite.tasks[0].class_names == NAMES  # the copy's own order
    assert suite.tasks[0].sizes == {"train": 12, "val": 4, "test": 6}
    assert suite.images is None
    found = built(suite, tmp_path / "lists")
    assert len(found) == 22 and found["images/test/000005"] == jpeg(5) and found["images/train/000011"] == jpeg(11)


def test_a_copy_without_splits_is_drawn_from(saved, tmp_path):
    assert read_suite(saved(table(tmp_path, 20))).tasks[0].sizes == {"train": 12, "val": 4, "test": 4}


def several(folder):
    import datasets

    return table(folder, 4, label=datasets.Sequence(datasets.Value("int64")))


def without_images(folder):
    import datasets

    return table(folder, 4, image=datasets.Value("int64"))


def without_train(folder):
    return {"test": table(folder, 4), "extra": table(folder, 4)}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (several, "column 'label' holds several labels; .*multi-label data are not supported"),
        (without_images, "no column of images; it has image, label"),
        (without_train, "test, extra, but no split train"),
    ],
)
def test_other_copies_are_answered(saved, tmp_path, content, answer):
    with pytest.raises(SuiteError, match=answer):
        read_suite(saved(content(tmp_path)))


def test_a_copy_that_was_damaged_is_answered(saved, tmp_path):
    copy = saved(table(tmp_path, 20))
    (arrow,) = copy.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(SuiteError, match="copy: the copy cannot be read"):
        read_suite(copy)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(SuiteError, match=r'pip install "sctbench\[datasets\]"'):
        read_suite(tmp_path)
