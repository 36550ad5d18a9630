"""Records that earlier versions wrote: read, tabled, and counted as done where the spec is the same.

`old/schema<n>` are results folders that the code of that schema wrote, with

    sctbench run --suite demo --tasks digits --methods linear,sct --recipe epochs=1,precision=float32
    sctbench run --suite demo --tasks digits --methods lora:lr=1e30 --recipe epochs=1,precision=float32
    sctbench run --suite demo --tasks digits --methods linear --recipe epochs=1,precision=float32 --protocol tuned \
        --trials 2

(SCT of schema 2 with `precision=auto`, which that version kept.)
"""

import json
import shutil
from pathlib import Path

import pytest

from analysis import index
from analysis.frame import comparable_sets
from analysis.render.markdown import to_markdown
from analysis.tables.tasks import task_table
from harness.records.store import read_record
from harness.schema.record import SCHEMA, BadRecord, RunRecord
from harness.schema.spec import digest
from harness.schema.upgrades import UPGRADES, upgraded
from tests.command import sctbench

OLD = Path(__file__).parent / "old"
PATHS = sorted(OLD.glob("*/runs/*/*/*/record.json"))
SCHEMAS = sorted(UPGRADES)
RUN = ("--suite", "demo", "--tasks", "digits", "--recipe", "epochs=1,precision=float32")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: "/".join((path.parts[-6], path.parts[-2])))
def test_an_old_record_is_read_with_its_numbers(path):
    document, record = json.loads(path.read_text()), read_record(path)
    assert record.spec.run_id == document["run_id"]
    assert (record.status, record.reason) == (document["status"], document["reason"])
    for split, metrics in document["metrics"].items():
        values = metrics if document["schema"] < 4 else metrics["values"]
        assert (record.metrics[split].accuracy, record.metrics[split].loss) == (values["accuracy"], values["loss"])
        assert record.metrics[split].correct_per_class == metrics["correct_per_class"]
    if cost := document["cost"]:
        assert record.cost.cached_features == cost["computed_once" if document["schema"] < 4 else "cached_features"]
        assert record.cost.seconds == cost["attach_seconds"] + cost["train_seconds"] + cost["evaluate_seconds"]
    if document["tuning"]:
        assert (record.primary_metric, record.tuning.metric) == ("accuracy", "accuracy")
        assert [trial.score for trial in record.tuning.trials] == [15.0, 15.0]
    if document["schema"] == 2:
        assert record.method_source == ""
        assert record.data is None or record.data.pixels == ""
    assert record.class_names == []
    assert bool(record.files) == (document["schema"] >= 5 and record.status == "complete")
    assert RunRecord.from_json(record.to_json()) == record


def test_there_are_records_of_every_schema_and_kind():
    documents = [json.loads(path.read_text()) for path in PATHS]
    kinds = {(one["schema"], one["status"], one["spec"]["protocol"]) for one in documents}
    assert kinds == {
        (schema, *kind)
        for schema in range(2, SCHEMA)
        for kind in (("complete", "fixed"), ("failed", "fixed"), ("complete", "validation"), ("complete", "tuned"))
    }
    assert list(range(2, SCHEMA)) == SCHEMAS


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_table_of_a_folder_with_old_records(schema, tmp_path):
    shutil.copytree(OLD / f"schema{schema}", tmp_path / "results")
    rows, rejected = index.load(tmp_path / "results")
    (fixed,) = (one for one in comparable_sets(rows) if one.key["protocol"] == "fixed")
    table = to_markdown(task_table(fixed))
    assert not rejected
    assert all(text in table for text in ("Linear", "15.3", "SCT", "22.8"))


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(
    ("selection", "done"),
    [(("--methods", "linear"), 1), (("--methods", "linear", "--protocol", "tuned", "--trials", "2"), 3)],
)
def test_the_same_command_finds_an_old_run_complete(schema, selection, done, tmp_path):
    out = OLD / f"schema{schema}"
    plan = json.loads(sctbench("plan", *RUN, *selection, "--out", out, "--json", cwd=tmp_path))
    assert (plan["total"]["runs"], plan["total"]["complete"]) == (done, done)


def test_the_digest_is_that_of_the_document_as_it_was_written():
    text = PATHS[0].read_text()
    with pytest.raises(BadRecord, match="altered"):
        RunRecord.from_json(text.replace('"seed": 0', '"seed": 1'))


def test_an_old_document_that_lacks_what_its_schema_has_is_refused_whole():
    document = json.loads(PATHS[0].read_text())
    del document["metrics"], document["digest"]
    with pytest.raises(BadRecord, match="another version") as refused:
        RunRecord.from_json(json.dumps(document | {"digest": digest(document)}))
    assert refused.value.whole


def test_a_document_is_not_changed_by_its_upgrade():
    document = json.loads(PATHS[0].read_text())
    before = json.dumps(document)
    upgraded(document, document["schema"])
    assert json.dumps(document) == before
