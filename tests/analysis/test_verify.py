"""Own records against published numbers: the verdict's rule, the names, and the conditions that differ."""

import dataclasses
import json

import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from analysis import commands, literature
from analysis.render.markdown import to_markdown
from analysis.verify import as_rows, conditions, own_name, summary, verify, within_spread
from harness.commands.main import app
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.plans.experiment import select
from harness.plans.plan import expand
from harness.records.store import Store
from harness.schema.spec import BackboneSpec
from harness.training.run import RunContext, run
from methods.registry import all_methods
from suites import SUITES
from tests import layouts
from tests.examples import make_record, make_spec
from tests.table_records import cells, domain, only_set

TITLES = {method.title: name for name, method in all_methods().items()}
ORIGINAL = BackboneSpec(name="vit_base_patch16_224.orig_in21k", weights="pretrained", digest="ab", image_size=224)


def measured(values, method="sct", title="SCT", **changes):
    """values: task to accuracies, one per seed."""
    common = {"suite": "vtab1k", "backbone": ORIGINAL, "preprocessing": "224px-squash-bicubic-half"} | changes
    return [
        make_record(spec=make_spec(task=task, method=method, seed=seed, **common), accuracy=value, method_title=title)
        for task, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]


@pytest.mark.parametrize(
    ("seeds", "printed", "expected"),
    [
        ([70.0, 71.0, 72.0], "75.9", "inside"),  # 71 ± 4.303 * 1 * sqrt(4/3) = 71 ± 4.968, and half of 0.1
        ([70.0, 71.0, 72.0], "76.0", "inside"),
        ([70.0, 71.0, 72.0], "76.1", "outside"),
        ([70.0, 71.0, 72.0], "66.0", "inside"),
        ([70.0, 71.0, 72.0], "65.9", "outside"),
        ([75.04, 75.04], "75.0", "inside"),  # no spread, but the printed digit is rounded
        ([75.06, 75.06], "75.0", "outside"),
        ([75.4, 75.4], "75", "inside"),
        ([75.0], "75.0", "one seed"),
    ],
)
def test_the_rule(seeds, printed, expected):
    assert within_spread(pd.Series(seeds), printed) == expected


@pytest.mark.parametrize(
    ("printed", "own"),
    [
        ("SCT", "sct"),
        ("Full fine-tuning", "full"),
        ("Linear probing", "linear"),
        ("vpt_deep", "vpt_deep"),
        ("VPT-Deep", "vpt_deep"),
        ("Adapter", None),  # which of several it is, the name does not say; above all it is not Adapter+
        ("NOAH", None),
    ],
)
def test_names_of_sources(printed, own):
    assert own_name(printed, TITLES) == own


def test_every_source_and_backbone_of_vtab_rows_is_described_or_said_to_be_unknown():
    known = conditions()
    assert set(known["sources"]) <= set(literature.load())
    assert set(known["methods"].values()) <= set(TITLES.values())
    for name in known["sources"]:
        rows = literature.source(name).rows
        shown = rows[(rows["suite"] == "vtab1k") & rows["backbone"].str.startswith("ViT")]
        assert set(shown["backbone"]) <= set(known["backbones"])


def test_cells_are_compared_one_by_one_and_the_mean_over_the_same_tasks():
    part = verify(only_set(measured({"cifar100": [75.0, 76.0], "kitti": [50.0, 50.0]})), literature.source("vpetl"))
    quoted = literature.matrix(literature.source("vpetl")).loc["SCT"]
    rows = part.table.rows
    assert list(rows) == ["SCT, cifar100", "SCT, kitti", "SCT, mean of the tasks (2)"]
    cifar, kitti, mean = (cells(part.table, row) for row in rows)
    assert cifar["", "published"].value == quoted["cifar100"]
    assert (cifar["", "measured"].value, cifar["", "seeds"].value) == (75.5, 2)
    assert cifar["", "measured"].spread == pytest.approx(0.5**0.5)
    assert (cifar["", "verdict"].text, kitti["", "verdict"].text) == ("inside", "outside")
    assert mean["", "measured"].value == 62.75
    assert mean["", "difference"].value == pytest.approx(62.75 - (quoted["cifar100"] + quoted["kitti"]) / 2, abs=0.051)
    assert cifar["", "params (M) published"].text == "0.11"
    assert summary(part) == "vpetl: 2 cells, 1 inside, 1 outside"
    assert "prediction interval" in to_markdown(part.table)


def test_few_shot_numbers_are_found_by_data_set_and_shots():
    given = [
        make_record(
            spec=make_spec(
                suite="fewshot", task="food101", method="lora", shots=shots, split_seed=s, backbone=ORIGINAL
            ),
            accuracy=10.0 * shots + s,
            method_title="LoRA",
        )
        for shots in (1, 16)
        for s in range(3)
    ]
    source = literature.source("petl_vit_issue_11")
    printed = source.rows[(source.rows["method"] == "LoRA") & (source.rows["dataset"] == "food101")].set_index("shots")
    rows = verify(only_set(given), source).table.rows
    assert list(rows) == ["LoRA, food101 1-shot", "LoRA, food101 16-shot", "LoRA, mean of the tasks (2)"]
    for shots, row in zip(("1", "16"), rows.values(), strict=False):
        assert (row["", "published"].value, row["", "measured"].value) == (
            float(printed.loc[shots, "value"]),
            10 * int(shots) + 1,
        )


def test_targets_of_domain_generalisation_and_full_data_are_found():
    given = [dataclasses.replace(domain("full", split_seed=s, backbone=ORIGINAL), method_title="Full") for s in (0, 1)]
    rows = verify(only_set(given), literature.source("pace")).table.rows
    sets = ("imagenet", "imagenetv2", "imagenet-sketch", "imagenet-a", "imagenet-r")
    values = zip(sets, (70, 60, 30, 10, 25), strict=True)
    assert {name: row["", "measured"].value for name, row in list(rows.items())[:5]} == {
        f"Full, {n} 16-shot": v for n, v in values
    }
    tasks = {task.name: [80.0, 81.0] for task in SUITES["fgvc"].tasks}
    birds = verify(only_set(measured(tasks, "lora", "LoRA", suite="fgvc")), literature.source("vpetl"))
    assert len(birds.table.rows) == len(tasks) + 1


def test_every_suite_and_data_set_of_the_published_numbers_is_one_of_ours():
    names = {s.name: {n for t in s.tasks for n in (t.name, *(g.name for g in t.targets))} for s in SUITES.values()}
    for source in literature.load().values():
        single = source.rows[source.rows["part"] == ""]
        for suite, dataset in single[["suite", "dataset"]].drop_duplicates().itertuples(index=False):
            if suite == "cifar100_1k_lossless":  # of one source, beside its VTAB-1K
                continue
            assert dataset in {*names[suite], "ALL"}, (source.name, suite, dataset)


def test_numbers_of_another_backbone_are_named_and_not_counted():
    source = literature.source("pace")

    def against(backbone):
        given = [dataclasses.replace(domain("full", seed=s, backbone=backbone), method_title="Full") for s in (0, 1)]
        return verify(only_set(given), source)

    assert {row.split(",")[0] for row in against(ORIGINAL).table.rows} == {"Full"}
    other = against(dataclasses.replace(ORIGINAL, name="swin_base_patch4_window7_224.ms_in22k"))
    printed = {f"Full (printed: Full [{backbone}])" for backbone in ("ViT-B/16 in21k", "Swin-B in21k")}
    assert {row.split(",")[0] for row in other.table.rows} == printed
    assert summary(other) == "pace: 0 cells; 10 of another backbone"


def test_conditions_that_differ_are_named():
    chosen = only_set(measured({"cifar100": [75.0, 76.0]}, protocol="fixed"))
    text = "; ".join(verify(chosen, literature.source("vpetl")).differences)
    assert "a compilation; where run, the best test epoch is kept, here: the last epoch (protocol fixed)" in text
    assert "normalisation published: mixed, here: half" in text
    assert "backbone" not in text
    small = only_set(measured({"cifar100": [75.0]}, backbone=make_spec().backbone))
    assert "backbone published: ViT-B/16 in21k, here: demo_vit (pretrained weights)" in (
        verify(small, literature.source("vpetl")).differences
    )
    osu = only_set(measured({"cifar100": [75.0]}, "lora", "LoRA", preprocessing="224px-squash-bicubic-none"))
    text = "; ".join(verify(osu, literature.source("osu")).differences)
    assert "settings chosen on val" in text
    assert "normalisation" not in text


def test_variants_of_a_method_are_rows_of_their_own_and_other_suites_have_nothing():
    given = measured({"kitti": [80.0]}, config={"channels": 24}) + measured({"kitti": [81.0]}, config={"channels": 48})
    rows = verify(only_set(given), literature.source("vpetl")).table.rows
    assert [row.split(",")[0] for row in rows] == [
        "SCT (channels=24) (printed: SCT)",
        "SCT (channels=48) (printed: SCT)",
    ]
    assert verify(only_set([make_record()]), literature.source("vpetl")) is None


def test_failed_and_validation_runs_are_no_numbers_to_verify(tmp_path):
    store = Store(tmp_path)
    for record in measured({"kitti": [80.0, 81.0]}, protocol="validation"):
        store.write(record)
    with pytest.raises(HarnessError, match="no source has a method and task of these records"):
        commands.verified(None, tmp_path, None, None, Console(quiet=True))
    failed = dataclasses.replace(measured({"kitti": [80.0]})[0], status="failed", metrics={})
    for record in [failed, *measured({"cifar100": [70.0, 71.0]})]:
        store.write(record)
    found = commands.verified("vpetl", tmp_path, None, None, Console(quiet=True))
    assert list(found[0].table.rows) == ["SCT, cifar100"]
    row = json.loads(json.dumps(as_rows(found)))[0]
    assert (row["cell"], row["seeds"], row["verdict"], row["suite"]) == ("SCT, cifar100", 2, "inside", "vtab1k")


def test_runs_on_a_miniature_of_the_suite_are_verified_by_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    suite = dataclasses.replace(layouts.VTAB, recipe={"epochs": 1, "precision": "float32"})
    monkeypatch.setitem(SUITES, "vtab1k", suite)
    layouts.vtab(tmp_path / "data", "pets")
    tiny_model = {"backbone": "test_vit", "weights": "random", "image_size": 32}
    flags = {"suite": "vtab1k", "tasks": ["oxford_iiit_pet"], "methods": ["linear", "sct"], "seeds": 2, **tiny_model}
    for spec in expand(select(flags)):
        ctx = RunContext(spec=spec, device=torch.device("cpu"), roots=Roots(data=tmp_path / "data"))
        done = run(ctx)
        Store(tmp_path / "out").write(done.record, done.files)
    shown = CliRunner().invoke(app, ["verify", "--source", "vpetl", "--out", str(tmp_path / "out")]).stdout
    assert "SCT (printed: SCT [ViT-B/16 in21k]), oxford_iiit_pet" in shown
    assert "backbone published: ViT-B/16 in21k, here: test_vit (random weights)" in " ".join(shown.split())
    assert "vpetl: 0 cells; 2 of another backbone" in " ".join(shown.split())
    found = CliRunner().invoke(app, ["verify", "--source", "vpetl", "--out", str(tmp_path / "out"), "--json"]).stdout
    rows = json.loads(found)
    assert {row["cell"] for row in rows} == {
        "Linear (printed: Linear probing [ViT-B/16 in21k]), oxford_iiit_pet",
        "SCT (printed: SCT [ViT-B/16 in21k]), oxford_iiit_pet",
    }
    assert all(row["seeds"] == 2 and row["verdict"] == "other backbone" for row in rows)
