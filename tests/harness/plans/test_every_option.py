"""No option is ignored in silence: each changes the plan, the record or what is printed, or is refused."""

import dataclasses
import inspect
import json
from itertools import product

import pytest

from harness.commands import data as data_commands
from harness.commands import main, options, runs, sharing, slurm, status
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.plans.experiment import KEYS, Experiment, read_file, select
from harness.plans.plan import check_curve, expand, finals
from harness.records.place import read
from harness.records.store import Store
from harness.schema.record import StoredFile
from harness.training.rerun import again
from tests import layouts
from tests.command import sctbench
from tests.examples import make_record, make_spec

BASE = {"suite": "demo", "methods": "linear,lora", "tasks": "digits,animals"}

CHANGES = {
    "experiment": "experiment.yaml",
    "suite": "demo-fewshot",
    "methods": "lora",
    "tasks": "digits",
    "seeds": 2,
    "protocol": "validation",
    "trials": 3,
    "backbone": "test_vit",
    "weights": "random",
    "image_size": 84,
    "recipe": "epochs=2",
    "shots": "1",
    "statistics": "none",
    "fit": "crop",
    "interpolation": "bilinear",
}
"""A value of each option that says what to run, other than that of `BASE`."""

PUBLISHED = {"suite": "vtab1k", "methods": "sct", "tasks": "cifar100,dtd", "protocol": "published"}
PUBLISHED |= {"backbone": "vit_base_patch16_224.orig_in21k", "weights": "random"}
BASES = {
    **{protocol: BASE | {"protocol": protocol} for protocol in ("fixed", "tuned", "validation", "oracle")},
    "fewshot": {"suite": "demo-fewshot", "methods": "linear,sct", "tasks": None},
    "published": PUBLISHED,
}
REFUSED = {
    **{name: {"trials", "shots"} for name in ("fixed", "validation", "oracle")},
    "tuned": {"shots"},
    "fewshot": {"trials", "tasks"},
    "published": {"suite", "methods", "trials", "backbone", "image_size", "recipe", "shots", "tasks"},
}
"""Options whose value above does not fit."""


def plan(**given):
    """Everything that a selection decides of its runs."""
    selection = options.Asked(**given).selection()
    decided = finals(selection) if selection.protocol == "tuned" else []
    return expand(selection), [(final.trials, final.seed, final.budget) for final in decided]


def test_each_option_of_a_selection_is_here():
    assert CHANGES.keys() == {"experiment", *KEYS}
    for command in (runs.run, runs.show_plan, slurm.submit, status.status):
        assert CHANGES.keys() <= inspect.signature(command).parameters.keys()
    assert set(experiment_keys()) <= CHANGES.keys()


def experiment_keys():
    """Keys of an experiment file."""
    return inspect.signature(Experiment).parameters


@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.parametrize("name", BASES)
def test_each_option_of_a_selection_changes_the_plan_or_is_refused(name, option, tmp_path):
    base, value = BASES[name], CHANGES[option]
    if option == "experiment":
        value = tmp_path / "experiment.yaml"
        value.write_text("seeds: 3\n")
    elif option == "backbone":
        base = base | {"weights": "random"}
    elif base.get(option, {"weights": "pretrained"}.get(option)) == value:
        value = {"suite": "demo", "protocol": "fixed", "weights": "nowhere.pth"}[option]
    changed = base | {option: value} | ({"tasks": None} if option == "suite" else {})
    if option in REFUSED[name] or value == "nowhere.pth":
        with pytest.raises(ValueError):
            plan(**changed)
    else:
        assert plan(**changed) != plan(**base)


@pytest.mark.parametrize("key", experiment_keys())
def test_each_key_of_an_experiment_file_changes_the_plan_or_is_refused(key, tmp_path):
    value = CHANGES[key]
    if key in ("methods", "tasks"):
        value = value.split(",")
    elif key == "shots":
        value = [1]
    elif key == "recipe":
        value = {"epochs": 2}
    base = {"suite": "demo", "methods": ["linear"], "protocol": "tuned"}
    if key == "backbone":
        base["weights"] = "random"
    if key == "shots":
        base["suite"] = "demo-fewshot"
    file = tmp_path / "experiment.yaml"

    def planned(values):
        file.write_text(json.dumps(values))
        selection = select({}, read_file(file))
        return expand(selection), [(f.trials, f.seed) for f in finals(selection)]

    assert planned(base | {key: value}) != planned(base)


@pytest.mark.parametrize(
    ("suite", "protocol"),
    [*product(["demo", "demo-fewshot"], ["fixed", "tuned", "validation", "oracle"]), ("no-val", "fixed")],
)
def test_a_curve_is_refused_where_no_run_has_one(suite, protocol, tmp_path):
    if suite == "no-val":
        suite = str(tmp_path / "noval.yaml")
        (tmp_path / "noval.yaml").write_text(
            "final_split: train\ntasks:\n"
            "  - {name: a, group: all, num_classes: 3, lists: {train: train.txt, test: test.txt}}\n"
        )
    selection = select({"suite": suite, "methods": ["linear"], "protocol": protocol})
    has_one = protocol in ("tuned", "validation") or (suite, protocol) == ("demo-fewshot", "fixed")
    if has_one:
        check_curve(selection)
    else:
        with pytest.raises(HarnessError, match=r"^--curve: under protocol"):
            check_curve(selection)


SUITE = """
recipe: {epochs: 1, batch_size: 6, precision: float32}
tasks:
  - {name: one, group: all, num_classes: 3}
"""
METHOD = """
from methods.linear import Linear

class Mine(Linear):
    name = "mine"
"""
RUN = ["--suite", "own.yaml", "--methods", "linear", "--backbone", "test_vit", "--weights", "random"]
RUN += ["--image-size", "32", "--device", "cpu"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.yaml").write_text(SUITE)
    layouts.vtab(tmp_path / "data", "one")
    for name in ("train800", "val200", "train800val200", "test"):  # the same images, the first of them left out
        rows = (tmp_path / f"data/one/{name}.txt").read_text().splitlines(keepends=True)
        (tmp_path / "lists/one").mkdir(parents=True, exist_ok=True)
        drop = {"train800val200": (0, 6)}.get(name, (0,))
        kept = [row for number, row in enumerate(rows) if number not in drop]
        (tmp_path / f"lists/one/{name}.txt").write_text("".join(kept))
    return tmp_path


def record(place, *flags, out="results"):
    sctbench("run", *RUN, "--out", out, *flags, cwd=place)
    (file,) = (place / out / "runs").rglob("record.json")
    return read(file)


def test_each_option_of_run_beside_its_selection_counts(place):
    own = inspect.signature(runs.run).parameters.keys() - CHANGES.keys() - {"context"}
    kept = {"keep_weights", "keep_logits"}
    assert own == {"root", "lists", "out", "device", "jobs", "curve", "track", "redo"} | kept
    usual = record(place, "--root", "data")
    other = record(place, "--root", "data", "--lists", "lists", out="other")
    assert (usual.data.sizes["test"], other.data.sizes["test"]) == (6, 5)
    curved = record(place, "--root", "data", "--protocol", "validation", "--curve", out="curved")
    assert list(curved.curve[0].scores) == ["val"]
    kept = record(place, "--root", "data", "--keep-weights", "none", "--keep-logits", out="kept")
    assert "weights.safetensors" in usual.files and "weights.safetensors" not in kept.files
    assert kept.files["predictions.safetensors"].size > usual.files["predictions.safetensors"].size
    record(place, "--root", "data", "--track", "tensorboard", out="drawn")
    assert list((place / "drawn/runs").rglob("tracking/tensorboard/seed0/events.*"))
    for flags, words in (
        (["--root", "data", "--keep-weights", "al"], "--keep-weights 'al': Did you mean 'all'"),
        (["--root", "data", "--curve"], "--curve: under protocol 'fixed' on suite 'own' val is trained on"),
        (["--root", "nowhere"], "--root nowhere: no such folder"),
        (["--root", "data", "--lists", "nowhere"], "--lists nowhere: no such folder"),
        (["--root", "data", "--device", "cuda:99"], "cuda"),
        (["--root", "data", "--jobs", "0"], "--jobs"),
        (["--root", "data", "--track", "wandbb"], "--track wandbb: no such tracker. Did you mean 'wandb'?"),
    ):
        assert words in sctbench("run", *RUN, "--out", "none", *flags, cwd=place, ok=False)
    assert not (place / "none").exists()


def test_lists_of_ones_own_count_for_a_suite_out_of_packages_too(place):
    flags = ["--suite", "demo", "--tasks", "digits"]
    refused = sctbench("data", "check", *flags, "--lists", "lists", cwd=place, ok=False)
    assert "no folder for the lists of 'digits' below lists" in refused


def test_each_option_of_data_check_counts(place):
    shared = {"suite", "root", "lists", "tasks", "shots"}
    assert inspect.signature(data_commands.check_data).parameters.keys() == shared | {"deep", "show", "as_json"}

    def found(*flags, ok=False):
        return sctbench("data", "check", "--suite", "own.yaml", "--root", "data", *flags, cwd=place, ok=ok)

    usual = found(ok=True)
    test = place / "data/one/images/test/000000.png"
    assert " 5 " in found("--lists", "lists", ok=True) and " 5 " not in usual
    assert "has no task 'two'" in found("--tasks", "two")
    assert "has no shots=1" in found("--shots", "1")
    content = bytearray(test.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    test.write_bytes(content)
    assert "cannot be decoded" in found("--deep") and "cannot be decoded" not in found(ok=True)
    for number in range(1, 6):
        test.with_name(f"00000{number}.png").unlink()
    assert [found("--show", n).count("no such file") for n in ("1", "4")] == [1, 4]
    assert found("--json").count("no such file") == 5


def test_each_option_of_data_lists_counts(place):
    assert inspect.signature(data_commands.write_lists).parameters.keys() == {"data", "to"}
    for name in ("cat", "dog"):
        for number in range(3):
            layouts.image(place / "pets" / name / f"{number}.png", number)
    assert "say which: --to" in sctbench("data", "lists", "pets", cwd=place, ok=False)
    assert "2 classes in" in sctbench("data", "lists", "pets", "--to", "new", cwd=place)
    assert (place / "new/pets.yaml").is_file() and (place / "new/pets/train.txt").is_file()
    assert "cannot be written to" in sctbench("data", "lists", "pets", "--to", "own.yaml/x", cwd=place, ok=False)


def test_a_method_or_suite_that_the_run_did_not_have_is_no_help_to_rerun(place):
    done = make_record()
    (place / "mine.py").write_text(METHOD)
    with pytest.raises(HarnessError, match=r"mine\.py:Mine is 'mine', and the run's method is"):
        again(done, Roots(), method=f"{place}/mine.py:Mine")
    with pytest.raises(HarnessError, match=r"own\.yaml is 'own', and the run's suite is"):
        again(done, Roots(), suite=place / "own.yaml")


@pytest.mark.parametrize("command", [["report"], ["compare", "linear", "lora"], ["bias"]])
def test_a_metric_that_is_asked_for_is_what_is_shown(command, tmp_path):
    for method, protocol in (("linear", "fixed"), ("lora", "fixed"), ("linear", "oracle")):
        record = make_record(spec=make_spec(method=method, protocol=protocol, config={}))
        last = record.metrics if protocol == "oracle" else {}
        Store(tmp_path / "results").write(dataclasses.replace(record, last_epoch=last))
    usual, by_loss = sctbench(*command, cwd=tmp_path), sctbench(*command, "--metric", "loss", cwd=tmp_path)
    assert "op-1 accuracy" in usual and "ross-entropy" not in usual
    assert "ross-entropy" in by_loss and "op-1 accuracy" not in by_loss
    assert "unknown metric 'los'. Did you mean 'loss'?" in sctbench(*command, "--metric", "los", cwd=tmp_path, ok=False)


SUBMIT = {
    "profile": ["mine.yaml"],
    "scheduler": ["local"],
    "partition": ["long"],
    "account": ["ours"],
    "qos": ["high"],
    "time": ["30"],
    "gpus": ["0"],
    "cpus": ["3"],
    "mem": ["5GB"],
    "constraint": ["a100"],
    "parallel": ["1"],
    "runs_per_job": ["1"],
    "setup": ["module load cuda"],
    "root": ["nowhere"],
    "lists": ["nowhere"],
    "out": ["elsewhere"],
    "track": ["wandbb"],
    "redo": ["nothing"],
    "keep_weights": ["none"],
    "keep_logits": [],
    "dry_run": [],
}


def test_each_option_of_submit_is_here():
    assert inspect.signature(slurm.submit).parameters.keys() == SUBMIT.keys() | CHANGES.keys()


@pytest.mark.parametrize("option", [option for option in SUBMIT if option != "dry_run"])
def test_each_option_of_submit_changes_what_it_would_do(option, place, monkeypatch):
    monkeypatch.setattr("slurm.schedulers.slurm._sleep", lambda _: None)  # SLURM may be installed here and not answer
    dry = ["submit", *RUN[:8], "--seeds", "2", "--dry-run"]
    (place / "mine.yaml").write_text("time: 45\n")
    usual = sctbench(*dry, cwd=place)
    flags = [f"--{option.replace('_', '-')}", *SUBMIT[option]]
    assert sctbench(*dry, *flags, cwd=place, ok=option not in ("root", "lists", "track", "redo")) != usual


def test_each_option_that_reads_or_writes_a_pack_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    assert inspect.signature(sharing.pack_results).parameters.keys() == {"results", "to", "predictions", "weights"}
    files = {"predictions.safetensors": StoredFile.of(b""), "weights.safetensors": StoredFile.of(b"")}
    Store(tmp_path / "A").write(make_record(files=files), dict.fromkeys(files, b""))
    Store(tmp_path / "B").write(make_record(spec=make_spec(method="lora")))
    for to, flags, held in (
        ("a.zip", [], "1 records; "),
        ("p.zip", ["--predictions"], "1 records, 1 predictions; "),
        ("w.zip", ["--weights"], "1 records, 1 weights; "),
    ):
        assert f"wrote {to}: {held}" in sctbench("pack", "A", "--to", to, *flags, cwd=tmp_path)
    for command in (main.report, main.compare):
        assert "results" in inspect.signature(command).parameters
    compared = sctbench("compare", "sct", "lora", "--results", "a.zip", "--results", "B", cwd=tmp_path)
    assert "SCT against LORA" in compared
    assert "no such results folder" in sctbench("report", "--results", "c.zip", cwd=tmp_path, ok=False)
