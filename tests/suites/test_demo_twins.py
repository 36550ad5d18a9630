"""The offline twins of the few-shot and domain-generalisation suites: draws, folders, targets, and whole runs."""

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.check import check
from harness.data.lists import Roots, locate, read_list
from harness.data.splits import TaskData
from harness.plans.experiment import select
from harness.plans.plan import expand
from harness.training.run import RunContext, run
from suites import SUITES
from tests import layouts

FEWSHOT, DG = SUITES["demo-fewshot"], SUITES["demo-dg"]
CASES = [(suite, task) for suite in (FEWSHOT, DG) for task in suite.tasks]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("twins")
    for suite, task in CASES:
        (root / suite.name).mkdir(exist_ok=True)
        task.build(root / suite.name / task.name)
    return root


def lists(root, suite, task, shots, split_seed):
    """Names and labels of every list."""
    sources = locate(suite, task, Roots(data=root / suite.name), shots, split_seed)
    return {split: read_list(source.path, task.num_classes) for split, source in sources.items()}


@pytest.mark.parametrize(("suite", "task"), CASES, ids=lambda x: x.name)
def test_every_class_has_k_images_and_splits_are_disjoint(root, suite, task):
    for shots, seed in suite.draws():
        splits = lists(root, suite, task, shots, seed)
        counts = np.bincount([entry.label for entry in splits["train"]])
        assert counts.tolist() == [shots] * task.num_classes
        names = [{entry.name for entry in entries} for entries in splits.values()]
        assert len(set.union(*names)) == sum(map(len, names)) == sum(map(len, splits.values()))
        sizes = {"val": task.sizes["val"], "test": task.sizes["test"], "train": shots * task.num_classes}
        assert {split: len(entries) for split, entries in splits.items()} == sizes


def test_draws_differ_and_shots_are_not_nested(root):
    (task,) = FEWSHOT.tasks
    draws = {(k, s): {entry.name for entry in lists(root, FEWSHOT, task, k, s)["train"]} for k, s in FEWSHOT.draws()}
    assert len({frozenset(names) for names in draws.values()}) == 15
    assert not any(draws[1, s] <= draws[2, s] for s in FEWSHOT.split_seeds)


def test_no_image_is_in_two_splits_under_two_names(root):
    (task,) = FEWSHOT.tasks
    splits = lists(root, FEWSHOT, task, 16, 0)
    folder = root / "demo-fewshot" / "animals" / "images"
    owner = {}
    for split, entries in splits.items():
        for entry in entries:
            assert owner.setdefault(Image.open(folder / entry.name).tobytes(), split) == split


@pytest.mark.parametrize("suite", [FEWSHOT, DG], ids=lambda s: s.name)
def test_the_check_finds_nothing_wrong(root, suite):
    report = check(suite, Roots(data=root / suite.name), deep=True)
    assert report.problems == []
    assert all(row.size == row.known for row in report.lists)


def test_targets_are_read_and_hold_the_stated_classes(root):
    for task in DG.tasks:
        data = TaskData(DG, task, layouts.SMALL, Roots(data=root / "demo-dg"), 16, 1).open_test()
        assert list(data) == ["test", *(target.name for target in task.targets)]
        for target in task.targets:
            assert len(data[target.name]) == target.size
            assert (len(data[target.name].labels.unique()) < task.num_classes) == target.masked


def test_shifted_crops_are_the_test_crops_shifted(root):
    data = TaskData(DG, DG.task("photo_crops"), layouts.SMALL, Roots(data=root / "demo-dg"), 16, 0).open_test()
    plain, low = data["test"].images.float(), data["contrast"].images.float()
    assert torch.equal(data["contrast"].labels, data["test"].labels)
    assert low.std(dim=(1, 2)).mean() < 0.5 * plain.std(dim=(1, 2)).mean()
    grey = data["grey"].images
    assert torch.equal(grey[..., 0], grey[..., 2])
    assert not torch.equal(plain[..., 0], plain[..., 2])


def test_building_again_gives_the_same_bytes(root, tmp_path):
    for suite, task in CASES:
        task.build(tmp_path / task.name)
        target = root / suite.name / task.name
        for path in (p for p in (tmp_path / task.name).rglob("*") if p.is_file()):
            assert path.read_bytes() == (target / path.relative_to(tmp_path / task.name)).read_bytes()


def test_masked_target_lists_are_found_apart_from_the_images(root):
    (file,) = locate(DG, DG.task("photo_crops").targets[-1], Roots(data=root / "demo-dg")).values()
    assert file.path.parent.name == "annotations"
    assert file.folder.name == "images"


@pytest.mark.parametrize(
    ("suite", "task", "method", "metrics"),
    [
        ("demo-fewshot", "animals", "linear", {"test"}),
        ("demo-dg", "photo_crops", "linear", {"test", "noise", "blur", "contrast", "grey", "grey/masked"}),
    ],
)
def test_a_run_scores_every_test_set(root, tmp_path, monkeypatch, suite, task, method, metrics):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path))
    flags = {"suite": suite, "tasks": [task], "methods": [method], "recipe": {"epochs": 1}, "shots": [16]}
    flags |= {"backbone": "test_vit", "weights": "random", "image_size": 32}
    record = run(RunContext(spec=expand(select(flags))[0], device=torch.device("cpu"))).record
    assert set(record.metrics) == metrics
    assert record.test_looks == 1
    known = {"test": SUITES[suite].task(task).sizes["test"]}
    known |= {target.name: target.size for target in SUITES[suite].task(task).targets}
    for name, result in record.metrics.items():
        assert sum(result.images_per_class) == known[name.removesuffix("/masked")]
    if "grey/masked" in metrics:
        assert record.metrics["grey/masked"].accuracy >= record.metrics["grey"].accuracy
