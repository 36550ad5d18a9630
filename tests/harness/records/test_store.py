"""Records and the store: round trip, and what happens to records that cannot be trusted."""

import dataclasses
import json

import pytest

from harness.errors import HarnessError
from harness.records.place import Place
from harness.records.store import Store, read_stored
from harness.schema.record import BadRecord, Parameters, RunRecord, StoredFile
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


def with_files(accuracy, **contents):
    """A record that names files of this content, and their content."""
    files = {f"{name}.safetensors": content for name, content in contents.items()}
    stored_files = {name: StoredFile.of(content) for name, content in files.items()}
    return make_record(accuracy, files=stored_files), files


def test_a_record_comes_with_the_files_that_it_names(tmp_path):
    store, (record, files) = Store(tmp_path), with_files(50, predictions=b"p", weights=b"w" * 5)
    folder = store.write(record, files).parent
    assert store.read(record.spec) == record
    assert {name: read_stored(folder, record, name) for name in files} == files
    for given in ({}, files | {"more": b""}):
        with pytest.raises(ValueError, match="the record names the files"):
            store.write(record, given)


def test_files_that_are_not_as_they_were_are_refused(tmp_path):
    store, (record, files) = Store(tmp_path), with_files(50, predictions=b"p")
    path = store.write(record, files).with_name("predictions.safetensors")
    with pytest.raises(HarnessError, match=r"kept no weights.safetensors\. Ask for them$"):
        read_stored(path.parent, record, "weights.safetensors", "Ask for them")
    path.write_bytes(b"q")
    with pytest.raises(HarnessError, match="altered"):
        read_stored(path.parent, record, path.name)
    path.unlink()
    with pytest.raises(HarnessError, match="cannot be read"):
        read_stored(path.parent, record, path.name)


def test_a_result_that_is_replaced_is_kept_with_its_files(tmp_path):
    store, (old, old_files) = Store(tmp_path), with_files(50, predictions=b"old", weights=b"old weights")
    new, new_files = with_files(60, predictions=b"new")
    folder = store.write(old, old_files).parent
    store.write(new, new_files)
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.safetensors", "record.json"]
    assert read_stored(folder, new, "predictions.safetensors") == b"new"
    (kept,) = (tmp_path / "superseded").iterdir()
    place = Place.of(kept, tmp_path)
    assert place.record == old
    assert {name: read_stored(kept, old, name) for name in old_files} == old_files


def test_a_failure_takes_no_files_over(tmp_path):
    store, (old, files) = Store(tmp_path), with_files(50, predictions=b"old")
    store.write(old, files)
    folder = store.write(make_record(status="failed")).parent
    assert [path.name for path in folder.iterdir()] == ["record.json"]
    assert len(list((tmp_path / "superseded").iterdir())) == 1


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
