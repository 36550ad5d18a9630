"""Suites taken in part and splits of one's own: in the record, in a warning, in captions and among the conditions."""

import pytest

from harness.data.lists import NOTE_FILE, Roots
from harness.data.splits import TaskData, not_official
from harness.records.store import read_record
from suites import SUITES
from tests import layouts
from tests.command import sctbench

PART = "train 6 instead of 800, val 3 instead of 200, trainval 9 instead of 1000, test 6 instead of 711"
NOTE = "own split, not VTAB's: drawn by hand"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))


def test_a_run_on_a_part_warns_once_per_task_and_whatever_shows_its_numbers_says_so(tmp_path):
    for task in ("kitti", "svhn"):
        layouts.vtab(tmp_path / "data" / "vtab-1k", task)
    (tmp_path / "data" / "vtab-1k" / "svhn" / NOTE_FILE).write_text(NOTE + "\n")
    what = ["--suite", "vtab1k", "--tasks", "kitti,svhn", "--methods", "linear", "--seeds", "2", "--recipe", "epochs=1"]
    what += ["--backbone", "test_vit", "--weights", "random", "--image-size", "32", "--root", tmp_path / "data"]
    said = " ".join(sctbench("run", *what, "--jobs", "1", cwd=tmp_path).split())
    assert said.count(f"warning: kitti: {PART}; numbers on it do not compare with published ones") == 1
    assert said.count("warning: svhn:") == 1 and f"test 6 instead of 26032, {NOTE}; numbers on it" in said
    records = [read_record(path) for path in (tmp_path / "results/runs").glob("*/*/*/record.json")]
    found = {record.spec.task: record.data for record in records}
    assert found["kitti"].official_sizes == {"train": 800, "val": 200, "trainval": 1000, "test": 711}
    assert (found["kitti"].split_origin, found["svhn"].split_origin) == ("", NOTE)
    sctbench("report", cwd=tmp_path)
    (caption,) = [text.read_text() for text in (tmp_path / "results/report").glob("*/tasks.md")]
    assert f"not comparable with published numbers: kitti ({PART}), svhn (train 6" in caption
    verified = " ".join(sctbench("verify", "--source", "vpetl", cwd=tmp_path).split())
    assert f"here not the suite's own data: kitti ({PART}), svhn (train 6" in verified


@pytest.mark.parametrize(
    ("suite", "task", "shots", "draw"),
    [(layouts.VTAB, "kitti", None, None), (layouts.FEWSHOT, "food101", 4, 1), (layouts.DG, "imagenet", 16, 0)],
    ids=lambda x: getattr(x, "name", x),
)
def test_data_of_the_stated_sizes_are_the_suites_own(tmp_path, suite, task, shots, draw):
    layouts.vtab(tmp_path, "kitti")
    layouts.few_shot(tmp_path / "food-101" / "images", tmp_path / "few-shot/food101/annotations", layouts.FEWSHOT)
    layouts.imagenet(tmp_path, tmp_path)
    data = TaskData(suite, suite.task(task), layouts.SMALL, Roots(data=tmp_path), shots, draw)
    assert data.fingerprint().official_sizes and not data.fingerprint().not_official
    assert not list(not_official(suite, (task,), Roots(data=tmp_path), (), layouts.SMALL))


def test_every_further_test_set_is_counted(tmp_path):
    layouts.imagenet(tmp_path, tmp_path)
    file = tmp_path / "domain-generalization/imagenet-sketch/annotations/val_meta.list"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    data = TaskData(layouts.DG, layouts.DG.task("imagenet"), layouts.SMALL, Roots(data=tmp_path), 16, 0)
    assert data.fingerprint().not_official == ["imagenet-sketch 4 instead of 6"]


def test_a_list_that_names_every_image_twice_is_whole_and_one_that_lacks_images_is_not(tmp_path):
    """NOAH's 1-shot lists of pets are of the first kind."""
    lists = tmp_path / "few-shot/oxford-pets/annotations"
    layouts.few_shot(tmp_path / "oxford_pets" / "images", lists, layouts.FEWSHOT)
    twice, less = (lists / f"train_meta.list.num_shot_1.seed_{seed}" for seed in (0, 1))
    twice.write_text(twice.read_text().strip() + "\n" + twice.read_text())
    less.write_text(less.read_text().splitlines()[0] + "\n")
    task = layouts.FEWSHOT.task("oxford_pets")
    found = [TaskData(layouts.FEWSHOT, task, layouts.SMALL, Roots(data=tmp_path), 1, seed).origin() for seed in (0, 1)]
    assert [origin.not_official for origin in found] == [[], ["train 1 instead of 3"]]
    assert found[0].sizes["train"] == 6


@pytest.mark.parametrize(
    "name", ["vtab1k", "fewshot", "domain_generalization", "fgvc", "demo", "demo-fewshot", "demo-dg"]
)
def test_every_task_of_a_known_suite_states_the_sizes_of_what_is_scored(name):
    for task in SUITES[name].tasks:
        assert {"val", "test"} <= set(task.sizes) and all(target.size for target in task.targets)
