"""`trainval` must be `train` and `val`: the check and every run see where it is not."""

import shutil

import pytest
from PIL import Image

from harness.data.check import check
from harness.data.lists import Roots
from harness.data.splits import TaskData
from harness.errors import DataError
from tests import layouts

TASK = "svhn"
WHOLE = "train800val200.txt"


def as_noah_writes_it(folder):
    """Each image of trainval in a file of its own."""
    lines = (folder / WHOLE).read_text().splitlines()
    (folder / "images/trainval").mkdir()
    for number, line in enumerate(lines):
        name, label = line.split()
        shutil.copyfile(folder / name, folder / f"images/trainval/{number:06d}.png")
        lines[number] = f"images/trainval/{number:06d}.png {label}"
    (folder / WHOLE).write_text("\n".join(lines))


@pytest.fixture(params=["one file", "copies"])
def folder(request, tmp_path):
    folder = layouts.vtab(tmp_path, TASK)
    if request.param == "copies":
        as_noah_writes_it(folder)
    return folder


def found(folder):
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,))
    return [(problem.severity, problem.text.replace(f"{folder}/", "")) for problem in report.problems]


def open_(folder):
    TaskData(layouts.VTAB, layouts.VTAB.task(TASK), layouts.SMALL, Roots(data=folder.parent))


def rewrite(folder, file, change):
    lines = [line.split() for line in (folder / file).read_text().splitlines()]
    (folder / file).write_text("".join(f"{name} {label}\n" for name, label in change(lines)))


def shuffled(lines):
    return [(name, (int(label) + (number in (1, 4))) % 3) for number, (name, label) in enumerate(lines)]


def shifted(lines):
    return [(name, (int(label) + 1) % 3) for name, label in lines]


def test_lists_that_belong_together(folder):
    assert found(folder) == []
    open_(folder)


@pytest.mark.parametrize(("change", "line", "count"), [(shuffled, 2, 2), (shifted, 1, 9)])
def test_other_labels_in_trainval(folder, change, line, count):
    rewrite(folder, WHOLE, change)
    ((severity, text),) = found(folder)
    assert severity == "error" and text.startswith(f"{WHOLE}:{line}: images/")
    name = (folder / WHOLE).read_text().splitlines()[line - 1].split()[0]
    old = line - 1
    assert f"{name} has label {old + 1} here and {old} in train800.txt:{line} (and {count - 1} more such imag" in text
    with pytest.raises(DataError, match=f"{WHOLE}:{line}: .* has label {old + 1} here and {old} in"):
        open_(folder)


def test_labels_that_are_shuffled_in_train_or_shifted_in_val(folder):
    rewrite(folder, "train800.txt", shuffled)
    rewrite(folder, "val200.txt", shifted)
    (text,) = [text for severity, text in found(folder) if severity == "error"]
    assert "has label 1 here and 2 in train800.txt:2 (and 4 more such images)" in text
    with pytest.raises(DataError, match="has label 1 here and 2 in"):
        open_(folder)


def test_an_image_too_many_too_few_or_another(folder):
    rewrite(folder, WHOLE, lambda lines: [*lines, lines[0]])
    assert any("is listed 2 times here and 1 times in train800.txt and val200.txt" in text for _, text in found(folder))
    with pytest.raises(DataError, match=f"{WHOLE}:1: .* is listed 2 times here"):
        open_(folder)
    rewrite(folder, WHOLE, lambda lines: lines[1:9])
    message = "train800.txt:1: images/train/000000.png is not in train800val200.txt"
    assert ("error", message) in found(folder)
    with pytest.raises(DataError, match=message):
        open_(folder)
    layouts.image(folder / "images/other.png", 1)
    rewrite(folder, WHOLE, lambda lines: [("images/other.png", 1), *lines])
    assert ("error", f"{WHOLE}:1: images/other.png is in neither train800.txt nor val200.txt") in found(folder)
    with pytest.raises(DataError, match="is in neither"):
        open_(folder)


def test_images_of_trainval_encoded_in_another_way_are_a_warning(tmp_path):
    """They may be the same; their labels are as often there as in train and val."""
    folder = layouts.vtab(tmp_path, TASK)
    as_noah_writes_it(folder)
    for path in (folder / "images/trainval").iterdir():
        with Image.open(path) as image:
            image.load()
        image.save(path, compress_level=0)
    kinds = found(folder)
    assert [severity for severity, _ in kinds] == ["warning", "warning"] and "is in neither" in kinds[0][1]
    open_(folder)


def test_an_image_has_the_same_label_in_all_draws(tmp_path):
    notes = tmp_path / "oxford_pets/annotations"
    layouts.few_shot(tmp_path / "oxford_pets/images", notes, layouts.FEWSHOT)
    first, second = (notes / f"train_meta.list.num_shot_2.seed_{seed}" for seed in (0, 1))
    second.write_text("".join(f"{name} {(int(label) + 1) % 3}\n" for name, label in map(split_line, lines_of(first))))
    report = check(layouts.FEWSHOT, Roots(data=tmp_path), ("oxford_pets",), (2,))
    (text,) = [problem.text for problem in report.problems if problem.severity == "error"]
    assert text.startswith(f"{second}:1: ") and f"has label 1 here and 0 in {first}:1 (and 5 more" in text


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line]


def split_line(line):
    return line.rsplit(maxsplit=1)
