"""The folders and lists in circulation, in miniature: each is found, checked without problems, and read."""

import dataclasses

import pytest
import torch

from analysis.frame import comparable_sets
from analysis.tables.tasks import result_tables
from harness.data.check import check
from harness.data.lists import Roots, folders_taken, locate
from harness.data.splits import TaskData
from harness.plans.experiment import select
from harness.plans.plan import expand
from harness.training.run import RunContext, run
from suites import SUITES
from tests import layouts

VTAB_FOLDERS = sorted({(task.name, folder) for task in layouts.VTAB.tasks for folder in task.folders})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))


def read(suite, task, roots, sizes):
    """Read everything of a task and compare the numbers of images; nothing may be wrong with it."""
    report = check(suite, roots, (task.name,), deep=True)
    assert report.problems == []
    assert all(row.size == row.known for row in report.lists)
    for shots, seed in suite.draws():
        data = TaskData(suite, task, layouts.SMALL, roots, shots, seed)
        counts = {split: len(data.train(split)) for split in task.lists if split != "test"}
        counts |= {name: len(split) for name, split in data.open_test().items()}
        assert counts == sizes | ({"train": shots * task.num_classes} if shots else {})
    return report


def one_task(suite, name):
    return dataclasses.replace(suite, tasks=(suite.task(name),))


def run_once(monkeypatch, suite, roots, method, shots=()):
    """One epoch, run as every run is."""
    monkeypatch.setitem(SUITES, suite.name, suite)
    flags = {"suite": suite.name, "methods": [method], "recipe": {"epochs": 1}, "shots": list(shots)}
    flags |= {"backbone": "test_vit", "weights": "random", "image_size": 32}
    return run(RunContext(spec=expand(select(flags))[0], device=torch.device("cpu"), roots=roots)).record


@pytest.mark.parametrize(("name", "folder"), VTAB_FOLDERS, ids="-".join)
def test_vtab_folders_are_found_by_every_name_in_circulation(tmp_path, name, folder):
    layouts.vtab(tmp_path, folder, "jpg" if len(folder) % 2 else "png")
    read(layouts.VTAB, layouts.VTAB.task(name), Roots(data=tmp_path), {"train": 6, "val": 3, "trainval": 9, "test": 6})


@pytest.mark.parametrize("between", layouts.VTAB.folders)
def test_the_folder_between_root_and_tasks_may_be_there(tmp_path, between):
    layouts.vtab(tmp_path / between, "cifar")
    task = layouts.VTAB.task("cifar100")
    read(layouts.VTAB, task, Roots(data=tmp_path), {"train": 6, "val": 3, "trainval": 9, "test": 6})


def other_copies(root):
    """The same set as torchvision and CoOp lay it out: folders of the suite's names without its lists."""
    layouts.image(root / "dtd/images/banded/banded_0002.jpg", 1)
    (root / "dtd/labels").mkdir()
    (root / "dtd/split_zhou_DescribableTextures.json").write_text("{}")
    (root / "eurosat/2750/Forest").mkdir(parents=True)


@pytest.mark.parametrize("name", ["dtd", "eurosat"])
def test_the_folder_that_holds_the_lists_is_taken_and_named(tmp_path, name):
    other_copies(tmp_path)
    folder, roots = layouts.vtab(tmp_path / "vtab-1k", name), Roots(data=tmp_path)
    report = read(layouts.VTAB, layouts.VTAB.task(name), roots, {"train": 6, "val": 3, "trainval": 9, "test": 6})
    line = f"{name}: lists and images are taken from {folder} (holds 4 lists), not from {tmp_path / name} (holds 0)"
    assert report.choices == folders_taken(layouts.VTAB, ["sun397", name], roots) == [line]


def test_of_two_copies_the_one_with_more_lists_is_taken_then_the_first(tmp_path):
    near, far = layouts.vtab(tmp_path, "cifar"), layouts.vtab(tmp_path / "vtab", "cifar100")
    (near / "val200.txt").unlink()
    roots, task = Roots(data=tmp_path), layouts.VTAB.task("cifar100")
    assert locate(layouts.VTAB, task, roots)["test"].folder == far
    (far / "test.txt").unlink()
    assert locate(layouts.VTAB, task, roots)["train"].folder == near
    (tmp_path / "vtab-1k").symlink_to("vtab")  # another name of the same folder is no choice
    assert "vtab-1k" in folders_taken(layouts.VTAB, ["cifar100"], roots)[0]
    assert folders_taken(layouts.VTAB, ["cifar100"], roots)[0].count("(holds 3") == 2


def test_a_folder_inside_the_one_taken_is_no_choice(tmp_path):
    layouts.few_shot(tmp_path / "fgvc_aircraft/images", tmp_path / "fgvc_aircraft/annotations", layouts.FEWSHOT)
    assert folders_taken(layouts.FEWSHOT, ["fgvc_aircraft"], Roots(data=tmp_path)) == []


def test_images_apart_from_the_lists_are_taken_from_where_they_are(tmp_path):
    """torchvision's `food-101/images` is there, but empty."""
    suite, roots = one_task(layouts.FEWSHOT, "food101"), Roots(data=tmp_path)
    (tmp_path / "food-101/images").mkdir(parents=True)
    (tmp_path / "few-shot/food101/annotations").mkdir(parents=True)
    layouts.few_shot(tmp_path / "food101/images", tmp_path / "food101/annotations", suite)
    report = read(suite, suite.tasks[0], roots, {"train": 0, "val": 6, "test": 6})
    assert any(
        f"lists are taken from {tmp_path}/food101/annotations (holds 3 lists), not from "
        f"{tmp_path}/few-shot/food101/annotations (holds 0); food101: images are taken from "
        f"{tmp_path}/food101/images (holds " in line
        for line in report.choices
    )


def test_a_further_test_set_is_taken_from_where_its_list_and_images_are(tmp_path):
    suite, roots = layouts.DG, Roots(data=tmp_path / "data", lists=tmp_path / "noah")
    layouts.imagenet(roots.data, roots.lists)
    (roots.data / "imagenet-sketch/images").rename(roots.data / "imagenet-sketch/sketch")
    (roots.data / "imagenet-sketch/images").mkdir()
    folders = ("imagenet-sketch/images", "imagenet-sketch/sketch")
    target = dataclasses.replace(suite.tasks[0].targets[1], folders=folders)
    assert locate(suite, target, roots)["imagenet-sketch"].folder == roots.data / "imagenet-sketch/sketch"


FEW_SHOT_FOLDERS = [
    ("food101", "food-101/images", "food101", ""),
    ("stanford_cars", "stanford_cars", "standford-cars", "cars_train/"),
    ("oxford_flowers102", "oxford_flowers/jpg", "oxford-flowers102", ""),
    ("oxford_pets", "oxford_pets/images", "oxford-pets", ""),
    ("fgvc_aircraft", "fgvc_aircraft/images", "fgvc-aircraft", ""),
]


@pytest.mark.parametrize(("name", "images", "lists", "sub"), FEW_SHOT_FOLDERS, ids=lambda x: x.replace("/", "-"))
def test_few_shot_lists_lie_apart_from_the_images(tmp_path, name, images, lists, sub):
    suite = dataclasses.replace(one_task(layouts.FEWSHOT, name), shots=(1, 4))
    notes = tmp_path / "noah" / "few-shot" / lists / "annotations"
    layouts.few_shot(tmp_path / "coop" / images, notes, suite, sub)
    roots = Roots(data=tmp_path / "coop", lists=tmp_path / "noah")
    report = read(suite, suite.tasks[0], roots, {"train": 0, "val": 6, "test": 6})
    assert len(report.lists) == 2 * 3 + 2


def test_imagenet_and_its_shifted_sets(tmp_path, monkeypatch):
    suite, roots = layouts.DG, Roots(data=tmp_path / "data", lists=tmp_path / "noah")
    layouts.imagenet(roots.data, roots.lists)
    targets = {target.name: 6 for target in suite.tasks[0].targets}
    read(suite, suite.tasks[0], roots, {"train": 48, "val": 3, "test": 6, **targets})
    record = run_once(monkeypatch, suite, roots, "linear")
    assert set(record.metrics) == {"test", *targets, "imagenet-a/masked", "imagenet-r/masked"}
    assert record.metrics["imagenet-a"].images_per_class == [3, 3, 0]


def test_images_stand_in_the_subfolder_that_holds_most_of_them(tmp_path):
    suite, roots = layouts.DG, Roots(data=tmp_path / "data", lists=tmp_path / "noah")
    layouts.imagenet(roots.data, roots.lists)
    (roots.data / "imagenet/images/val/n01440/ILSVRC2012_val_0.JPEG").unlink()  # the list's first image
    (problem,) = check(suite, roots).problems
    assert "val_meta.list:1: " in problem.text and "no such file" in problem.text


@pytest.mark.parametrize(
    ("name", "folder", "images"),
    [
        ("cub", "CUB_200_2011", "images"),
        ("nabirds", "nabirds", "images"),
        ("oxford_flowers", "OxfordFlower", ""),
        ("stanford_dogs", "Stanford-dogs", "Images"),
        ("stanford_cars", "Stanford-cars", ""),
    ],
)
def test_fgvc_lists_are_json_with_class_ids_of_their_own(tmp_path, name, folder, images):
    layouts.fgvc(tmp_path / "fgvc", folder, images)
    read(layouts.FGVC, layouts.FGVC.task(name), Roots(data=tmp_path), {"train": 6, "val": 3, "test": 6})


METHODS = ("linear", "lora", "sct")


@pytest.mark.parametrize(
    ("suite", "name", "shots"),
    [
        (layouts.VTAB, "oxford_iiit_pet", ()),
        (layouts.FEWSHOT, "food101", (2,)),
        (layouts.FGVC, "cub", ()),
        (layouts.DG, "imagenet", ()),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_suite_goes_from_images_to_a_table(tmp_path, monkeypatch, suite, name, shots):
    layouts.vtab(tmp_path, "pets")
    layouts.few_shot(tmp_path / "food101/images", tmp_path / "food101/annotations", layouts.FEWSHOT)
    layouts.fgvc(tmp_path, "cub", "images")
    layouts.imagenet(tmp_path, tmp_path / "noah")
    lists = tmp_path / "noah" if suite is layouts.DG else None
    roots = Roots(data=tmp_path, lists=lists)
    records = [run_once(monkeypatch, one_task(suite, name), roots, method, shots) for method in METHODS]
    assert [record.test_looks for record in records] == [1, 1, 1]
    (comparable,) = comparable_sets(records)
    table = result_tables(comparable)[0]
    assert set(table.rows) == {"Linear", "LoRA", "SCT"}
    for cells in map(table.cells, table.rows):
        assert cells[0].is_number and 0 <= cells[0].value <= 100
