"""The check of a copy of the data: every defect is named with file and line, and what is whole passes."""

import contextlib
import dataclasses
import json
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from harness.commands.main import app
from harness.data import decoding
from harness.data.check import check
from harness.data.lists import Entry, Roots, read_list
from harness.data.looks import look
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.execution.overview import Overview, overview
from harness.plans.experiment import select
from harness.schema.preprocessing import Preprocessing
from suites import SUITES
from tests import layouts
from tests.examples import make_record

TASK = "svhn"


@pytest.fixture
def folder(tmp_path):
    return layouts.vtab(tmp_path, TASK)


def problems(folder, **options):
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,), **options)
    assert report.errors == sum(problem.severity == "error" for problem in report.problems)
    return [problem.text.replace(f"{folder}/", "") for problem in report.problems]


def rewrite(folder, file, change):
    lines = (folder / file).read_text().splitlines()
    (folder / file).write_text("\n".join(change(lines)) + "\n")


def test_a_whole_copy_has_no_problems(folder):
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,), deep=True)
    assert report.problems == []
    assert [(row.split, row.size, row.known) for row in report.lists] == [
        ("train", 6, 6),
        ("val", 3, 3),
        ("trainval", 9, 9),
        ("test", 6, 6),
    ]
    assert report.images == 15


def test_windows_line_ends_blank_lines_and_spaces_are_fine(folder):
    (folder / "images/test/000000.png").rename(folder / "images/test/a b  c.png")
    rewrite(folder, "test.txt", lambda lines: ["images/test/a b  c.png 0", *lines[1:]])
    text = (folder / "test.txt").read_text().replace("\n", "\r\n") + "\r\n \r\n"
    (folder / "test.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert problems(folder) == []


@pytest.mark.parametrize("line", ["images/test/000001.png 3", "images/test/000001.png 1.0", "images/test/000001.png"])
def test_labels_out_of_range_or_no_numbers(folder, line):
    rewrite(folder, "test.txt", lambda lines: [lines[0], line, *lines[2:]])
    bad, count = problems(folder)
    assert bad.startswith("test.txt:2: ") and "with a label from 0 to 2" in bad
    assert count == "test.txt: 5 images, where 6 are expected"


def test_tabs_and_several_spaces_divide_too(tmp_path):
    (tmp_path / "x.txt").write_text("a b.png\t1\nc.png   2\n")
    assert list(read_list(tmp_path / "x.txt", 3)) == [Entry("a b.png", 1, 1), Entry("c.png", 2, 2)]


def test_a_list_that_is_no_text_is_named(folder):
    (folder / "val200.txt").write_bytes(b"\xff\xfe\x00")
    assert problems(folder)[0].startswith("val200.txt: not a text file in UTF-8")
    with pytest.raises(HarnessError, match="UTF-8"):
        read_list(folder / "val200.txt", 3)


def test_missing_lists_and_folders(folder, tmp_path):
    (folder / "val200.txt").unlink()
    assert problems(folder) == ["val200.txt: no such list file"]
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK, "dtd"))
    assert report.problems[0].text.startswith("no folder for the images of 'dtd'")
    assert report.errors == 2


def test_missing_empty_truncated_and_foreign_images(folder):
    images = folder / "images/test"
    (images / "000000.png").unlink()
    (images / "000001.png").write_bytes(b"")
    layouts.random_image(images / "000002.png")
    (images / "000002.png").write_bytes((images / "000002.png").read_bytes()[:1000])
    (images / "000003.png").write_text("<html>404</html>")
    layouts.random_image(folder / "images/test/000004.jpg")
    (images / "000004.png").write_bytes((images / "000004.jpg").read_bytes()[:-400])
    found = problems(folder)
    parts = ["no such file", "the file is empty", "cannot be decoded", "cannot be decoded", "cannot be decoded"]
    assert len(found) == 5
    for number, (text, part) in enumerate(zip(found, parts, strict=True)):
        assert text.startswith(f"test.txt:{number + 1}: images/test/00000{number}.png: ") and part in text


FORMATS = {
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "jpeg.tif": {"compression": "jpeg"},
    "gif": {},
    "bmp": {},
    "ppm": {},
    "jp2": {},
    "j2k": {"no_jp2": True},
    "webp": {},
    "tga": {},
    "pcx": {},
    "dds": {},
    "avif": {},
    "png": {},
    "jpg": {},
}


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_file_that_was_cut_is_found_in_every_format(tmp_path, ending, share):
    path = tmp_path / f"x.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(path, **FORMATS[ending])
    assert look(path).problem is None
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert look(path).problem.startswith("cannot be decoded")


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_no_file_is_named_and_not_opened(folder, deep):
    names = [f"images/test/{number:06d}.png" for number in range(5)]
    for name in names:
        (folder / name).unlink()
    os.mkfifo(folder / names[0])
    (folder / names[1]).mkdir()
    (folder / names[2]).symlink_to("/dev/zero")
    with contextlib.chdir(folder / "images/test"), socket.socket(socket.AF_UNIX) as server:
        server.bind("000003.png")
    (folder / names[4]).symlink_to(folder / names[4])
    found = problems(folder, deep=deep)
    for number, what in enumerate(
        ["a pipe, not", "a folder, not", "a device, not", "a socket, not", "cannot be accessed"]
    ):
        assert found[number].startswith(f"test.txt:{number + 1}: {names[number]}: {what}")
    assert len(found) == 5


def test_very_many_classes_take_neither_memory_nor_lines(tmp_path):
    notes = tmp_path / "oxford_pets/annotations"
    layouts.few_shot(tmp_path / "oxford_pets/images", notes, layouts.FEWSHOT)
    task = dataclasses.replace(layouts.FEWSHOT.task("oxford_pets"), num_classes=10**15)
    report = check(dataclasses.replace(layouts.FEWSHOT, tasks=(task,)), Roots(data=tmp_path), shots=(2,))
    texts = [problem.text for problem in report.problems if "no image of" in problem.text]
    assert len(texts) == 4 and all(f"{10**15 - 3} of {10**15} classes, first class 3" in text for text in texts)


@pytest.mark.parametrize("line", ["images/test/000001.png " + "9" * 5000, "images/test/\0.png 1"])
def test_lines_that_nobody_meant(folder, line):
    rewrite(folder, "test.txt", lambda lines: [lines[0], line, *lines[2:]])
    bad, _ = problems(folder)
    assert bad.startswith("test.txt:2: ") and "with a label from 0 to 2" in bad and len(bad) < 400
    with pytest.raises(HarnessError, match=r"test\.txt:2: .* label from 0 to 2"):
        TaskData(layouts.VTAB, layouts.VTAB.task(TASK), layouts.SMALL, Roots(data=folder.parent))


def test_damage_inside_an_image_needs_the_deep_check(folder):
    path = folder / "images/test/000000.png"
    layouts.random_image(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert problems(folder) == []
    (text,) = problems(folder, deep=True)
    assert text.startswith("test.txt:1: ")


def test_a_png_with_a_damaged_chunk_is_an_error_for_the_user(tmp_path):
    """Pillow raises SyntaxError for it."""
    path = tmp_path / "x.png"

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    layouts.random_image(path)
    head, body = path.read_bytes()[:33], zlib.compress(bytes(20 * 91))
    second = chunk(b"IDAT", body[len(body) // 2 :])
    path.write_bytes(head + chunk(b"IDAT", body[: len(body) // 2]) + b"\0\0\0\4\1\2\3\4" + second + chunk(b"IEND", b""))
    assert look(path, deep=True).problem
    with pytest.raises(HarnessError, match="cannot be decoded"):
        decoding.decode(path, Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3))


def test_the_same_image_in_two_splits(folder):
    rewrite(folder, "val200.txt", lambda lines: ["images/train/000000.png 0", *lines[1:]])
    rewrite(folder, "test.txt", lambda lines: [*lines[:-1], "images/val/000002.png 2"])
    found = problems(folder)
    assert "train800.txt:1: images/train/000000.png is also in val200.txt:1" in found[0]
    assert any(text.startswith("val200.txt:3: images/val/000002.png is also in test.txt:6") for text in found)


LEAKS = {
    "another spelling": lambda folder: "./images/../images/test/000000.png",
    "a link": lambda folder: link(folder / "linked.png", folder / "images/test/000000.png"),
    "a linked folder": lambda folder: link(folder / "elsewhere", folder / "images/test") + "/000000.png",
}


def link(new, old):
    new.symlink_to(old)
    return new.name


@pytest.mark.parametrize("leak", LEAKS)
def test_the_same_image_under_another_name(folder, leak):
    name = LEAKS[leak](folder)
    texts = []
    for file in ("train800.txt", "train800val200.txt"):
        rewrite(folder, file, lambda lines: [f"{name} 0", *lines[1:]])
        texts.append(f"{file}:1: {name} is also in test.txt:1")
    assert problems(folder) == texts
    with pytest.raises(HarnessError, match=f"{name} is also in .*test.txt:1"):
        TaskData(layouts.VTAB, layouts.VTAB.task(TASK), layouts.SMALL, Roots(data=folder.parent))


def test_a_further_test_set_may_hold_no_training_image(tmp_path):
    layouts.imagenet(tmp_path / "data", tmp_path / "noah")
    target = dataclasses.replace(layouts.DG.tasks[0].targets[0], folders=("imagenet/images/train",), name="again")
    suite = dataclasses.replace(layouts.DG, tasks=(dataclasses.replace(layouts.DG.tasks[0], targets=(target,)),))
    train = next(tmp_path.rglob("train_meta.list.num_shot_16.seed_0"))
    next(tmp_path.rglob("imagenetv2/annotations/val_meta.list")).write_text(train.read_text())
    roots = Roots(data=tmp_path / "data", lists=tmp_path / "noah")
    assert "is also in" in check(suite, roots).problems[0].text
    with pytest.raises(HarnessError, match="is also in"):
        TaskData(suite, suite.tasks[0], layouts.SMALL, roots, 16, 0)


def test_val_may_hold_training_images_only_where_it_is_not_scored(folder):
    rewrite(folder, "val200.txt", lambda lines: ["images/train/000000.png 0", *lines[1:]])
    rewrite(folder, "train800val200.txt", lambda lines: [*lines[:6], "images/train/000000.png 0", *lines[7:]])
    data = layouts.VTAB, layouts.VTAB.task(TASK), layouts.SMALL, Roots(data=folder.parent)
    TaskData(*data)
    with pytest.raises(HarnessError, match=r"train800\.txt:1: .* is also in .*val200\.txt:1"):
        TaskData(*data, val_is_scored=True)


def test_an_image_listed_twice_is_a_warning_and_two_labels_are_an_error(folder):
    rewrite(folder, "test.txt", lambda lines: [lines[0], lines[0], "images/test/000000.png 2", *lines[3:]])
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,))
    (twice, labels) = report.problems
    assert twice.severity == "warning" and "test.txt:2: " in twice.text and "is already in line 1" in twice.text
    assert labels.severity == "error" and "has label 2 here and 0 in line 1" in labels.text


def test_classes_without_images(folder):
    rewrite(folder, "test.txt", lambda lines: [line[:-1] + "0" for line in lines])
    report = check(layouts.VTAB, Roots(data=folder.parent), (TASK,))
    assert [problem.severity for problem in report.problems] == ["warning"]
    assert "no image of 2 of 3 classes, first class 1" in report.problems[0].text


@pytest.mark.parametrize(("split", "warnings"), [("test", 1), ("val", 0)])
def test_a_class_missing_from_one_json_list_shifts_no_label(tmp_path, split, warnings):
    layouts.fgvc(tmp_path, "cub", "images")
    file = tmp_path / f"cub/{split}.json"
    values = {name: 21 if i == 11 else i for name, i in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(values))
    report = check(layouts.FGVC, Roots(data=tmp_path), ("cub",))
    assert (report.errors, len(report.problems)) == (0, warnings)
    row = next(row for row in report.lists if row.split == split)
    assert [entry.label for entry in row.images.entries] == [(i - 1) // 10 for i in values.values()]
    data = TaskData(layouts.FGVC, layouts.FGVC.task("cub"), layouts.SMALL, Roots(data=tmp_path))
    assert list(data.entries(split)) == list(row.images.entries)


def test_json_lists_with_more_or_fewer_ids_than_classes_are_refused_by_all(tmp_path):
    layouts.fgvc(tmp_path, "cub", "images")
    file = tmp_path / "cub/test.json"
    file.write_text(file.read_text().replace("21", "22"))
    message = "test.json: 4 class ids in the task's JSON lists, where it has 3 classes"
    assert message in check(layouts.FGVC, Roots(data=tmp_path), ("cub",)).problems[-1].text
    with pytest.raises(HarnessError, match=r"4 class ids in the task's JSON lists"):
        TaskData(layouts.FGVC, layouts.FGVC.task("cub"), layouts.SMALL, Roots(data=tmp_path))


def test_pets_one_shot_lists_name_each_image_twice(tmp_path):
    suite = dataclasses.replace(layouts.FEWSHOT, shots=(1,))
    notes = tmp_path / "oxford_pets/annotations"
    layouts.few_shot(tmp_path / "oxford_pets/images", notes, suite)
    file = notes / "train_meta.list.num_shot_1.seed_0"
    file.write_bytes(file.read_bytes() * 2)
    report = check(suite, Roots(data=tmp_path), ("oxford_pets",))
    assert (report.errors, len(report.problems)) == (0, 3)
    file.write_text(file.read_text().replace(" 2", " 1"))
    texts = [problem.text for problem in check(suite, Roots(data=tmp_path), ("oxford_pets",)).problems]
    assert any("class 1 has 2 images, not 1" in text for text in texts)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_counts_and_problems_and_its_status_tells(folder, monkeypatch):
    monkeypatch.setitem(SUITES, "vtab1k", layouts.VTAB)
    command = ["data", "check", "--suite", "vtab1k", "--root", folder.parent, "--tasks", TASK]
    good = invoke(*command)
    assert good.exit_code == 0 and "0 errors, 0 warnings" in good.output
    (folder / "images/test/000000.png").unlink()
    bad = invoke(*command)
    assert bad.exit_code == 1 and "test.txt:1: " in bad.output and "1 errors" in bad.output
    shown = json.loads(invoke(*command, "--json").stdout)
    assert shown["lists"][3] == {
        "task": TASK,
        "split": "test",
        "shots": None,
        "draw": None,
        "found": 6,
        "known": 6,
        "errors": 1,
        "warnings": 0,
    }
    assert [problem["severity"] for problem in shown["problems"]] == ["error"]


def test_bundled_suites_are_built_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path))
    result = invoke("data", "check", "--suite", "demo", "--tasks", "digits")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "suites/demo-v1/digits/images/test/000000.png") as image:
        assert image.size == (8, 8)


def test_the_cache_is_listed_and_cleared_by_commands(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    arrays = tmp_path / "cache" / "arrays"
    arrays.mkdir(parents=True)
    (arrays / "x.npy").write_bytes(bytes(2_500_000))
    assert json.loads(invoke("data", "cache", "ls", "--json").stdout) == [{"array": "x.npy", "bytes": 2_500_000}]
    assert "2.5 MB" in invoke("data", "cache", "ls").stdout
    assert "2.5 MB freed" in invoke("data", "cache", "clear").stdout
    assert "0 arrays" in invoke("data", "cache", "ls").stdout


def test_a_plan_needs_no_data(tmp_path):
    flags = ["plan", "--suite", "vtab1k", "--methods", "linear,lora", "--seeds", "3", "--out", tmp_path]
    table = invoke(*flags).stdout
    assert "114 runs, 0 complete already" in table and "diabetic_retinopathy" in table
    shown = json.loads(invoke(*flags, "--json").stdout)
    kitti = next(line for line in shown["tasks"] if line["task"] == "kitti")
    assert (kitti["runs"], kitti["train_images"], kitti["test_images"]) == (6, 1000, 711)
    assert kitti["array_bytes"] == (1000 + 711) * 56 * 56 * 3


def test_a_plan_counts_draws_targets_shots_and_complete_runs():
    few = select({"suite": "fewshot", "methods": ["linear"], "tasks": ["food101"], "shots": [1, 2]})
    one, two = overview(few, lambda spec: make_record(spec=spec) if spec.shots == 2 else None).lines
    assert (one.runs, one.complete, two.complete) == (3, 0, 3)
    assert (one.train_images, two.train_images) == (101, 202)
    assert two.array_bytes == 3 * 202 * 56 * 56 * 3  # the test set is counted once
    assert Overview([one, two]).totals["array_bytes"] == (3 * 303 + 30300) * 56 * 56 * 3
    (line,) = overview(select({"suite": "domain_generalization", "methods": ["linear"]}), nothing).lines
    assert line.test_images == 50000 + 10000 + 50889 + 7500 + 30000
    cub = {"suite": "fgvc", "methods": ["sct"], "tasks": ["cub"]}
    (line,) = overview(select(cub | {"protocol": "validation"}), nothing).lines
    assert (line.train_images, line.test_images) == (5394, 600)


def test_a_plan_under_tuned_counts_trials_and_finals():
    flags = {"suite": "vtab1k", "methods": ["linear", "sct"], "tasks": ["kitti"], "seeds": 3}
    (line,) = overview(select(flags | {"protocol": "tuned"}), nothing).lines
    (fixed,) = overview(select(flags), nothing).lines
    (one,) = overview(select(flags | {"protocol": "validation", "seeds": 1}), nothing).lines
    assert (line.runs, line.trials, line.train_images) == (2 * (8 + 3), 16, 1000)
    assert line.operations == fixed.operations + 8 * one.operations
    assert line.array_bytes == fixed.array_bytes + one.array_bytes
    (oracle,) = overview(select(flags | {"protocol": "oracle"}), nothing).lines
    assert oracle.operations > fixed.operations  # it scores the test split after every epoch


def nothing(spec):
    return None
