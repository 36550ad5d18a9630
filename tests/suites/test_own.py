"""The user's own data in every form become one suite, and each mistake is answered in one sentence."""

import os
import pickle

import pytest

from suites.base import SuiteError
from suites.load import load_suite
from suites.own import name_of, read_suite, write_lists

LEFT_BEHIND = (".DS_Store", "Thumbs.db", "._0.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg")


def put(root, *names, text="x"):
    """Files below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def images(count, *folders):
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(count)]


def lists(suite, folder):
    """Content of the suite's list files, by name."""
    (task,) = suite.tasks
    task.build(folder)
    return {path.name: [line.rsplit(maxsplit=1) for line in path.open()] for path in folder.glob("*.txt")}


def names(rows):
    return [name for name, _ in rows]


SPLIT = {"train": images(3, "train/cat", "train/dog"), "test": images(1, "test/cat", "test/dog")}


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_class_folders_with_all_splits_are_taken_as_they_are(tmp_path, val):
    put(tmp_path / "pets", *SPLIT["train"], *SPLIT["test"], f"{val}/cat/7.JPEG", f"{val}/dog/7.png", "README.md")
    put(tmp_path / "pets", *LEFT_BEHIND, *(f"train/cat/{name}" for name in LEFT_BEHIND))
    suite = read_suite(tmp_path / "pets")
    (task,) = suite.tasks
    assert (suite.name, task.name, task.class_names, task.num_classes) == ("pets", "pets", ("cat", "dog"), 2)
    assert task.sizes == {"train": 6, "val": 2, "test": 2}
    made = lists(suite, tmp_path / "lists")
    assert sorted(names(made["train.txt"])) == SPLIT["train"]
    assert made["test.txt"] == [["test/cat/0.jpg", "0"], ["test/dog/0.jpg", "1"]]
    assert made["trainval.txt"][:6] == made["train.txt"]
    assert "OWN_SPLIT.txt" not in made


def test_what_is_missing_is_drawn_from_train(tmp_path):
    suite = read_suite(put(tmp_path / "pets", *images(10, "cat", "dog"), *images(5, "owl")))
    made = lists(suite, tmp_path / "lists")
    assert suite.tasks[0].sizes == {"train": 15, "val": 5, "test": 5}
    parts = [set(names(made[f"{split}.txt"])) for split in ("train", "val", "test")]
    assert set.union(*parts) == {*images(10, "cat", "dog"), *images(5, "owl")}
    assert sum(map(len, parts)) == 25
    assert [label for _, label in made["test.txt"]] == ["0", "0", "1", "1", "2"]
    note = (tmp_path / "lists" / "OWN_SPLIT.txt").read_text()
    assert note == f"val and test drawn from train, a fifth of each class each (lists {suite.digest[:8]})\n"


def test_a_lone_missing_split_is_drawn_too_and_says_so(tmp_path):
    suite = read_suite(put(tmp_path / "pets", *images(5, "train/cat", "train/dog"), *SPLIT["test"]))
    assert suite.tasks[0].sizes == {"train": 8, "val": 2, "test": 2}
    assert "; val drawn from train, a fifth" in suite.about


def test_the_same_files_give_the_same_lists_in_whatever_order_they_come(tmp_path, monkeypatch):
    one = read_suite(put(tmp_path / "a" / "pets", *images(9, "cat", "dog")))
    put(tmp_path / "b" / "pets", *reversed(images(9, "cat", "dog")))
    listing = os.scandir

    class Reversed:
        def __init__(self, folder):
            with listing(folder) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    other = read_suite(tmp_path / "b" / "pets")
    assert one.digest == other.digest
    put(tmp_path / "b" / "pets", "cat/another.jpg")
    assert read_suite(tmp_path / "b" / "pets").digest != one.digest


def test_shots_are_drawn_per_class_and_split_seed(tmp_path):
    suite = read_suite(put(tmp_path / "pets", *images(10, "cat", "dog")), (1, 4))
    assert (suite.name, suite.shots, suite.split_seeds, suite.final_split) == (
        "pets-fewshot",
        (1, 4),
        (0, 1, 2),
        "train",
    )
    made = lists(suite, tmp_path / "lists")
    draws = {(shots, seed): made[f"train.{shots}-shot.seed-{seed}.txt"] for shots in (1, 4) for seed in (0, 1, 2)}
    assert all(sorted(label for _, label in rows) == ["0"] * k + ["1"] * k for (k, _), rows in draws.items())
    assert len({frozenset(names(draws[4, seed])) for seed in (0, 1, 2)}) == 3
    assert not {name for rows in draws.values() for name in names(rows)} & set(names(made["test.txt"]))
    with pytest.raises(SuiteError, match=r"pets: shots=7 is more than class 'cat' has training images, 6$"):
        read_suite(tmp_path / "pets", (7,))


def test_numbers_are_ordered_as_numbers(tmp_path):
    suite = read_suite(put(tmp_path / "digits", *images(3, "10", "9", "2")))
    assert suite.tasks[0].class_names == ("2", "9", "10")


def test_a_suite_of_a_path_travels_and_knows_when_the_path_has_changed(tmp_path):
    suite = pickle.loads(pickle.dumps(read_suite(put(tmp_path / "pets", *images(5, "cat", "dog")))))
    put(tmp_path / "pets", "cat/new.jpg")
    with pytest.raises(
        SuiteError, match=r"pets has changed since these runs were planned .*: start the command again$"
    ):
        suite.tasks[0].build(tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize(
    ("path", "name"), [("a/my birds (2)", "my_birds_2"), ("birds.v2", "birds.v2"), ("x/..", "here"), (".", "here")]
)
def test_the_name_is_that_of_the_folder(tmp_path, monkeypatch, path, name):
    place = tmp_path / "here"
    (place / path).mkdir(parents=True) if path != "x/.." else (place / "x").mkdir(parents=True)
    monkeypatch.chdir(place)
    assert name_of(place.__class__(path)) == name


MISTAKES = {
    "several data sets": (
        images(2, "birds/a", "birds/b", "cars/a"),
        r"holds data sets \(birds, cars\), not classes: did you mean .*birds\?",
    ),
    "one level too high": (
        images(2, "set/train/a", "set/train/b"),
        r"holds a data set \(set\), not classes: did you mean .*set\?",
    ),
    "one class": (images(5, "train/cat"), "only one class, 'cat'; at least two are needed"),
    "one class below": (["0.jpg", "1.jpg"], "holds images and no class folders: did you mean the folder above it"),
    "an image beside": ([*images(3, "cat", "dog"), "3.jpg"], r"3\.jpg lies in no class folder"),
    "nothing": (["readme.md"], "holds no images and no class folders"),
    "a table in it": (["labels.csv"], r"holds no images: did you mean .*labels\.csv\?"),
    "no image": ([*images(3, "cat", "dog"), "cat/notes.txt"], r"notes\.txt is no image: move it out"),
    "deeper": (
        [*images(3, "cat", "dog"), "cat/small/1.jpg"],
        "cat holds the folder small: a class folder holds images",
    ),
    "no train": (images(3, "val/cat", "val/dog", "test/cat"), "val and test, but no folder train"),
    "two vals": (images(3, "train/a", "train/b", "val/a", "valid/a"), "val and valid are both val"),
    "unknown class": (
        [*images(3, "train/a", "train/b"), "test/c/1.jpg", "test/d/1.jpg"],
        r"class 'c' of test has no image in train \(and 1 more\)",
    ),
    "case": (images(3, "cat", "Cat", "dog"), "classes 'Cat' and 'cat' differ in case or spaces alone"),
    "case of splits": (
        [*images(3, "train/cat", "train/dog"), "test/Dog/1.jpg"],
        "classes 'Dog' and 'dog' differ in case",
    ),
    "too few to draw": (
        [*images(3, "cat"), "dog/1.jpg"],
        "class 'dog' has 1 image, and needs 3, for val and test are drawn",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_folders_is_answered_in_a_sentence(tmp_path, mistake):
    files, answer = MISTAKES[mistake]
    with pytest.raises(SuiteError, match=answer) as error:
        read_suite(put(tmp_path / "data", *files))
    assert str(tmp_path / "data") in str(error.value) and "\n" not in str(error.value)


def test_an_empty_class_folder_and_one_split_of_several_are_answered(tmp_path):
    data = put(tmp_path / "data", *SPLIT["train"], *SPLIT["test"])
    with pytest.raises(SuiteError, match=r"train is one split of several \(train, test\): did you mean .*data\?$"):
        read_suite(data / "train")
    (data / "test" / "owl").mkdir()
    with pytest.raises(SuiteError, match="owl is an empty class folder: put images into it or delete it"):
        read_suite(data)
    put(data, "test/owl/.hidden.jpg")
    with pytest.raises(SuiteError, match="owl is an empty class folder"):
        read_suite(data)
    with pytest.raises(SuiteError, match="no folder, nor a file that ends with"):
        read_suite(tmp_path / "nowhere")


def table(folder, text, name="labels.csv"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


ROWS = "".join(f"im/{n}.jpg,{'cat' if n % 2 else 'dog, wild'}\n" for n in range(10)).replace("dog, wild", '"dog, wild"')


@pytest.mark.parametrize(
    ("header", "separator"),
    [("image,label", ","), ("\ufefffile_name,Class", ","), ("Path;category", ";"), ("img\ttarget", "\t")],
)
def test_a_table_names_images_and_labels(tmp_path, header, separator):
    put(tmp_path, *images(10, "im"))
    rows = ROWS if separator == "," else ROWS.replace('"dog, wild"', "dog").replace(",", separator)
    suite = read_suite(table(tmp_path, f"{header}\n{rows}\n"))
    assert suite.name == "labels"
    assert suite.tasks[0].class_names == ("cat", "dog, wild" if separator == "," else "dog")
    assert suite.tasks[0].sizes == {"train": 6, "val": 2, "test": 2}
    assert suite.images == tmp_path


def test_folders_that_a_plain_table_names_are_no_splits(tmp_path):
    put(tmp_path, *images(10, "test"))
    suite = read_suite(table(tmp_path, "image,label\n" + ROWS.replace("im/", "test/")))
    assert suite.tasks[0].sizes == {"train": 6, "val": 2, "test": 2}


def test_a_table_may_say_the_splits(tmp_path):
    put(tmp_path, *images(10, "im"))
    text = "image,label,split\n" + "".join(
        f"im/{n}.jpg,{n % 2},{'train' if n < 4 else 'Valid' if n < 6 else 'test'}\n" for n in range(10)
    )
    suite = read_suite(table(tmp_path, text))
    assert suite.tasks[0].sizes == {"train": 4, "val": 2, "test": 4}
    assert lists(suite, tmp_path / "lists")["test.txt"][0] == ["im/6.jpg", "0"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("per_split", [True, False])
def test_an_image_folder_of_hugging_face(tmp_path, form, per_split):
    root = put(tmp_path / "hf", *images(6, "train", "test"))
    for split in ("train", "test"):
        file = root / (f"{split}/metadata.{form}" if per_split else f"metadata.{form}")
        rows = [("" if per_split else f"{split}/") + f"{n}.jpg" for n in range(6)]
        with file.open("a") as out:
            if form == "csv":
                out.write("file_name,label\n" if not out.tell() else "")
                out.writelines(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(rows))
            else:
                out.writelines(f'{{"file_name": "{name}", "label": {n % 2}}}\n' for n, name in enumerate(rows))
    suite = read_suite(root)
    assert suite.tasks[0].class_names == (("a", "b") if form == "csv" else ("0", "1"))
    assert suite.tasks[0].sizes == {"train": 4, "val": 2, "test": 6}
    assert {name.split("/")[0] for name in names(lists(suite, tmp_path / "lists")["test.txt"])} == {"test"}


TABLES = {
    "no header": (
        "im/0.jpg,cat\nim/1.jpg,dog\n",
        r"labels\.csv:1: no header: the first line names the columns, `image,label`",
    ),
    "empty": ("", r"labels\.csv:1: no header"),
    "header alone": ("image,label\n", "no image in it, only a header"),
    "no label": ("image,width\nim/0.jpg,3\n", r"labels\.csv:1: no column of labels"),
    "missing file": (
        "image,label\nim/0.jpg,a\nim/x.jpg,b\nim/y.jpg,b\n",
        r"labels\.csv:3: there is no file 'im/x\.jpg' in .* \(and 1 more\)",
    ),
    "case": (
        "image,label\nim/0.jpg,cat\nim/1.jpg,Cat\n",
        r"labels\.csv:3: label 'Cat' differs from 'cat' in line 2 in case or spaces alone",
    ),
    "spaces": (
        "image,label\nim/0.jpg,cat\nim/1.jpg,cat \n",
        r"labels\.csv:3: label 'cat ' differs from 'cat' in line 2",
    ),
    "twice": (
        "image,label,split\nim/0.jpg,a,train\nim/0.jpg,a,test\n",
        r"labels\.csv:3: im/0\.jpg is already in line 2, there for train and here for test",
    ),
    "twice in one": ("image,label\nim/0.jpg,a\n./im/0.jpg,a\n", r"is already in line 2: name it once"),
    "two labels": (
        "image,label\nim/0.jpg,a\nim/0.jpg,b\n",
        r"already in line 2 with the label 'a', not 'b'; .*multi-label",
    ),
    "several in a cell": (
        "image,label\nim/0.jpg,a|b\n",
        r"labels\.csv:2: label 'a\|b' reads as several; .*multi-label data are not supported",
    ),
    "several with commas": (
        'image,label\nim/0.jpg,a\nim/1.jpg,b\nim/2.jpg,"a, b"\n',
        r"labels\.csv:4: label 'a, b' reads as several",
    ),
    "several columns": (
        "image,label,class\nim/0.jpg,a,b\n",
        r"several columns of labels \(label, class\): keep one; .*multi-label",
    ),
    "numbered columns": ("image,label_1,label_2\nim/0.jpg,a,b\n", r"several columns of labels .*multi-label"),
    "one-hot": ("image,cat,dog\nim/0.jpg,1,0\n", r"a column of zeros and ones for each class; .*multi-label"),
    "no such split": (
        "image,label,split\nim/0.jpg,a,fold1\n",
        r"labels\.csv:2: split 'fold1' is none of train, val and test",
    ),
    "no split in a row": (
        "image,label,split\nim/0.jpg,a,\n",
        r"labels\.csv:2: split '' is none of train, val and test",
    ),
    "no train": ("image,label,split\nim/0.jpg,a,test\n", "test, but no image to train on"),
    "cells": ("image,label\nim/0.jpg,a\nim/1.jpg\n", r"labels\.csv:3: 1 cells, where the header has 2"),
    "no label in a row": ("image,label\nim/0.jpg,\n", r"labels\.csv:2: no label"),
    "one class": ("image,label\nim/0.jpg,a\nim/1.jpg,a\n", "only one class, 'a'"),
}


@pytest.mark.parametrize("mistake", TABLES)
def test_a_mistake_in_a_table_is_answered_with_its_line(tmp_path, mistake):
    text, answer = TABLES[mistake]
    put(tmp_path, *images(5, "im"))
    with pytest.raises(SuiteError, match=answer) as error:
        read_suite(table(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_label_that_is_a_list_in_json_lines_is_answered(tmp_path):
    put(tmp_path, "0.jpg")
    with pytest.raises(SuiteError, match=r"metadata\.jsonl:1: label .* reads as several; .*multi-label"):
        read_suite(table(tmp_path, '{"file_name": "0.jpg", "label": ["a", "b"]}\n', "metadata.jsonl"))


def test_the_lists_and_the_yaml_that_are_written_are_the_same_suite(tmp_path):
    data = put(tmp_path / "pets", *images(5, "no", "010", "1e3"))
    suite, file = write_lists(data, tmp_path / "out")
    (task,), written = suite.tasks, load_suite(file)
    assert written.name == "pets"
    assert (written.tasks[0].class_names, written.tasks[0].sizes) == (task.class_names, task.sizes)
    assert file.read_text().startswith("# A suite of the data in")
    assert f"--suite {file} --root {data} --lists {tmp_path / 'out'}" in file.read_text()
    with pytest.raises(SuiteError, match="is there already; nothing is overwritten"):
        write_lists(data, tmp_path / "out")


A, B = "tasks:\n  - {name: a, num_classes: 3", "}\n  - {name: b, num_classes: 3}\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (f"class_weights: balanced\n{A}}}\n", ":1: class_weights: class-weighted training is not supported yet"),
        (f"{A}, multi_label: true}}\n", ":2: task 'a': multi_label: multi-label training is not supported yet"),
        (f"{A}, class_names: [x, y]}}\n", ":2: task 'a': 2 class_names for num_classes=3"),
        (f"{A}, group: g{B}", "task 'b' has no group, and others have one"),
    ],
)
def test_what_a_suite_file_cannot_have_is_answered(tmp_path, text, answer):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SuiteError, match=answer):
        load_suite(tmp_path / "s.yaml")


def test_a_lone_task_needs_no_group(tmp_path):
    (tmp_path / "s.yaml").write_text("tasks:\n  - {name: a, num_classes: 2, class_names: [x, y]}\n")
    (task,) = load_suite(tmp_path / "s.yaml").tasks
    assert (task.group, task.class_names) == ("", ("x", "y"))
