"""`--suite PATH`: the user's own data on the whole way, from a folder to records, names of classes and tables."""

import json
from pathlib import Path

import pytest

import sctbench as sb
from harness.data.lists import Roots
from harness.data.located import refuse_unusable
from harness.data.splits import TaskData
from harness.errors import DataError, HarnessError
from harness.execution import worker
from harness.plans.experiment import find_suite, select
from harness.plans.plan import expand
from harness.training import cost
from suites import SUITES
from suites.base import SuiteError
from tests import layouts
from tests.command import sctbench

CLASSES = ("cat", "dog", "owl")
BASE = ("--backbone", "test_vit", "--weights", "random", "--image-size", "32")
README = Path(__file__).parents[3] / "README.md"
RECIPE = ("--recipe", "epochs=1,batch_size=8,precision=float32")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of its own with a cache of its own; suites of paths are forgotten afterwards."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost, "LATENCY_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name, suite in SUITES.items() if suite.path is not None]:
        del SUITES[name]


def pets(root, count=6):
    for number, name in enumerate(CLASSES):
        for image in range(count):
            layouts.image(root / name / f"{image}.png", 100 * number + image)
    return root


def specs(path, **further):
    asked = {"suite": str(path), "methods": ["linear"], "backbone": "test_vit", "weights": "random", "image_size": 32}
    selection = select(asked | further)
    return selection, expand(selection)


def look(path, **further):
    selection, runs = specs(path, **further)
    return refuse_unusable(selection.suite, runs, Roots())


def test_a_folder_goes_to_a_table_and_its_classes_keep_their_names(place):
    pets(place / "pets")
    plan = sb.plan(suite="pets", methods=["linear"], backbone="test_vit", weights="random", image_size=32)
    assert [(line.train_images, line.test_images) for line in plan.overview().lines] == [(15, 3)]
    out = sctbench("run", "--suite", "pets", "--methods", "linear,bitfit", *BASE, *RECIPE, "--jobs", 1, cwd=place)
    assert "3 classes in" in out and "val and test drawn from train, a fifth of each class each" in out
    assert "numbers on it do not compare" not in out
    (folder,) = (place / "results/runs/pets/pets").glob("linear-*")
    record = json.loads((folder / "record.json").read_text())
    assert (record["schema"], record["class_names"]) == (6, list(CLASSES))
    assert record["data"]["split_origin"].startswith("val and test drawn from train")
    named = json.loads(sctbench("predict", folder, "pets/cat/0.png", "--top", 3, "--json", cwd=place))
    assert {row["class"] for row in named} == set(CLASSES)
    sctbench("export", folder, "--form", "timm", "--to", "out", cwd=place)
    assert json.loads((place / "out/config.json").read_text())["label_names"] == list(CLASSES)
    assert "* **Classes:** 0 cat, 1 dog, 2 owl" in (place / "out/README.md").read_text()
    report = sctbench("report", "--suite", "pets", cwd=place)
    assert "mean of tasks" not in report and "mean of groups" not in report
    assert "Data: pets (val and test drawn from train" in " ".join(report.split())
    assert "pets" in sctbench("status", "--suite", "pets", cwd=place)
    rows = sb.predictions(folder, suite="pets")
    images = rows["image"]
    for column in ("label", "predicted"):
        assert list(rows[f"{column}_name"]) == [CLASSES[number] for number in rows[column]]
    assert all(name.split("/")[0] in CLASSES for name in images)
    again = sctbench("run", "--suite", "pets", "--methods", "linear,bitfit", *BASE, *RECIPE, "--jobs", 1, cwd=place)
    assert "2 runs, 2 complete already" in again


def test_shots_of_a_folder_are_a_suite_of_their_own(place):
    pets(place / "pets")
    selection, runs = specs("pets", shots=[1, 2])
    assert selection.suite.name == "pets-fewshot"
    assert [(run.shots, run.split_seed) for run in runs] == [(k, draw) for k in (1, 2) for draw in (0, 1, 2)]
    assert look("pets", shots=[1, 2]) == []
    with pytest.raises(SuiteError, match=r"shots=0: numbers of images per class are at least 1"):
        specs("pets", shots=[0])


def test_the_name_of_another_suite_is_refused_and_a_link_helps(place):
    pets(place / "demo")
    with pytest.raises(HarnessError, match=r"a suite named 'demo' exists already: rename .* `ln -s .*/demo my-demo`"):
        find_suite("./demo")
    (place / "my-demo").symlink_to("demo")
    assert find_suite("my-demo").name == "my-demo"
    assert find_suite("demo").path is None


def test_a_path_that_is_not_there_is_answered(place):
    with pytest.raises(
        HarnessError, match=r"unknown suite 'pats'\. .* There is no folder or table of that name either\."
    ):
        find_suite("pats")
    with pytest.raises(HarnessError, match="suite 'data/pats': there is no such folder or table"):
        find_suite("data/pats")


def test_a_root_beside_a_path_is_refused(place):
    pets(place / "pets")
    out = sctbench("run", "--suite", "pets", "--root", place, "--methods", "linear", *BASE, cwd=place, ok=False)
    assert "says where its images are: leave out" in out


def test_a_worker_refuses_data_that_changed_after_the_plan(place):
    pets(place / "pets")
    selection, _ = specs("pets")
    setup = worker.setup_for(selection, place / "results", Roots(), "cpu")
    assert [suite.name for suite in setup.suites] == ["pets"]
    layouts.image(place / "pets/cat/new.png", 999)
    with pytest.raises(SuiteError, match="has changed since these runs were planned"):
        worker.init_worker(setup)


def test_runs_on_a_folder_that_has_grown_are_named(place):
    pets(place / "pets")
    run = ("run", "--suite", "pets", "--methods", "linear", *BASE, *RECIPE, "--jobs", 1)
    sctbench(*run, cwd=place)
    layouts.image(place / "pets/cat/new.png", 999)
    assert "were done on other data than there are now (lists differ" in sctbench(*run, cwd=place)


@pytest.mark.parametrize("content", [b"no image", None, b""])
def test_an_unreadable_image_is_answered_before_anything_runs(place, content):
    pets(place / "pets")
    bad = place / "pets/dog/3.png"
    bad.write_bytes(bad.read_bytes()[:200] if content is None else content)
    with pytest.raises(DataError, match=r"dog/3\.png: (cannot be decoded|the file is empty)"):
        look("pets")


def test_copies_between_splits_are_told_and_refused_where_they_are_most(place):
    for split in ("train", "test"):
        pets(place / "pets" / split, 4)
    with pytest.raises(DataError, match=r"12 of 12 images of test are copies of images of train and val, as test/"):
        look("pets")
    for number, file in enumerate(sorted((place / "pets/test").rglob("*.png"))[1:]):
        layouts.image(file, 1000 + number)
    (remark,) = look("pets")
    assert "1 of 12 images of test are copies of images of" in remark


def test_the_check_of_a_path(place):
    pets(place / "pets")
    out = sctbench("data", "check", "--suite", "pets", "--deep", cwd=place)
    assert "0 errors, 0 warnings" in out
    out = sctbench("data", "check", "--suite", "pets", "--shots", "2", cwd=place)
    assert "0 errors, 0 warnings" in out


def test_lists_that_were_written_run_like_the_path(place):
    pets(place / "pets")
    out = sctbench("data", "lists", "pets", "--to", "edited", cwd=place)
    assert "wrote edited/pets.yaml" in out
    direct = find_suite("pets")
    data = TaskData(direct, direct.tasks[0], layouts.SMALL)
    before = data.fingerprint()
    del SUITES["pets"]
    written = find_suite("edited/pets.yaml")
    now = TaskData(written, written.tasks[0], layouts.SMALL, Roots(data=place / "pets", lists=place / "edited"))
    assert now.fingerprint() == before
    del SUITES["pets"]


def test_the_export_of_a_path_is_a_copy_in_the_usual_layout(place):
    pets(place / "pets")
    sctbench("data", "export", "--suite", "pets", "--to", "copy", cwd=place)
    assert len(list((place / "copy/pets/images").rglob("*.png"))) == 18
    assert sorted(path.name for path in (place / "copy/pets").glob("*.txt")) == [
        "test.txt",
        "train.txt",
        "trainval.txt",
        "val.txt",
    ]


def test_the_commands_that_the_readme_shows_work(place):
    section = (README.read_text().partition("## Your own data\n")[2]).partition("The data folders in circulation")[0]
    commands = [line.partition("#")[0].split() for line in section.splitlines() if line.startswith("sctbench ")]
    assert [command[1] for command in commands] == ["run", "data", "data"]
    pets(place / "photos")
    for command in commands:
        sctbench(*["plan" if word == "run" else word for word in command[1:]], cwd=place)
    assert (place / "edited/photos.yaml").is_file()


@pytest.mark.parametrize("key", ["class_weights", "multi_label"])
def test_what_is_out_for_now_is_said_where_it_is_tried(place, key):
    pets(place / "pets")
    with pytest.raises(HarnessError, match=f"^{key}: .* training is not supported yet"):
        specs("pets", recipe={key: "balanced"})
    with pytest.raises(HarnessError, match=f"^{key}: .* training is not supported yet"):
        specs("pets", methods=[f"linear:{key}=balanced"])


def test_a_check_names_the_data_and_not_the_lists_that_were_made_of_them(place):
    pets(place / "pets")
    (place / "pets/cat/3.png").write_bytes(b"no image")
    out = " ".join(sctbench("data", "check", "--suite", "pets", cwd=place, ok=False).split())
    split = next(name for name in ("train", "val", "test") if f"{name} of {place / 'pets'}: " in out)
    assert f"{split} of {place / 'pets'}: {place / 'pets/cat/3.png'}: cannot be decoded" in out
    assert ".txt" not in out
