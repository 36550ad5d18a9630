"""Records and the store: round trip, and what happens to records that cannot be trusted."""

import dataclasses
import json

import pytest

from harness.records.store import Store
from harness.schema.record import BadRecord, Parameters, RunRecord
from harness.schema.spec import digest
from tests.examples import make_record, make_spec, stored


def test_round_trip():
    record = make_record()
    assert RunRecord.from_json(record.to_json()) == record


def test_a_failed_record_needs_no_result():
    record = RunRecord(spec=make_spec(), method_title="SCT", status="failed", reason="why")
    assert RunRecord.from_json(record.to_json()) == record


def test_written_record_is_read_back_and_complete(tmp_path):
    store, record = Store(tmp_path), make_record()
    path = store.write(record)
    assert path.parent.parent.parts[-3:] == ("runs", "demo", "digits")
    assert store.read(record.spec) == record
    assert store.complete(record.spec)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_with_tuples_in_its_settings_is_complete_too(tmp_path):
    store, spec = Store(tmp_path), make_spec(config={"blocks": (1, 2), "indices": ()})
    store.write(make_record(spec=spec))
    assert store.complete(spec)


def test_failed_is_not_complete(tmp_path):
    store = Store(tmp_path)
    store.write(make_record(status="failed"))
    assert not store.complete(make_spec())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "torn"),
        (lambda text: text.replace("71.5", "81.5"), "altered"),
        (lambda text: "[1, 2]", "not a run record"),
        (lambda text: "", "torn"),
        (lambda text: text.replace("71.5", "NaN"), "altered"),
        (lambda text: text.replace("71.5", "1e999"), "altered"),
        (lambda text: '{"digest": "%s"}' % digest({}), "another version"),  # noqa: UP031 (braces)
    ],
)
def test_a_bad_record_is_set_aside_with_the_reason(tmp_path, damage, reason):
    store = Store(tmp_path)
    path = store.write(make_record())
    other = store.write(make_record(spec=make_spec(seed=5)))
    path.write_text(damage(path.read_text()))
    records, rejected = stored(store.root)
    assert [r.spec.seed for r in records] == [5]
    assert [r.path for r in rejected] == [path]
    assert reason in rejected[0].reason
    assert not store.complete(make_spec())
    assert other.exists()


def test_bytes_that_are_no_text_are_set_aside(tmp_path):
    store = Store(tmp_path)
    store.write(make_record()).write_bytes(b"\xff\xfe\x00")
    assert len(stored(store.root)[1]) == 1
    assert store.read(make_spec()) is None


def test_a_record_of_another_schema_is_set_aside():
    body = json.loads(make_record().to_json())
    del body["digest"]
    body["schema"] = 999
    with pytest.raises(BadRecord, match="another version"):
        RunRecord.from_json(json.dumps(body | {"digest": digest(body)}))


def test_a_record_in_a_wrong_folder_does_not_count(tmp_path):
    """Somebody copied a run's folder by hand: the record inside speaks of another run."""
    store, other = Store(tmp_path), make_spec(seed=9)
    text = make_record().to_json()
    folder = store.folder(other)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    assert not store.complete(other)


def test_parameters_by_role_add_up():
    parameters = Parameters(method=3, backbone_trained=4, head=5, total=100)
    assert parameters.trained_without_head == 7
    assert parameters.trained_with_head == 12
    assert dataclasses.asdict(parameters)["total"] == 100
