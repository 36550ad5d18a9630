"""The index of records: right whatever happened to it or to the records."""

import os

import pandas as pd
import pytest

from analysis import index
from analysis.columns import frame_of
from analysis.frame import comparable_sets
from harness.records.store import Store
from harness.schema.record import RunRecord
from tests.examples import make_record, make_spec, stored
from tests.table_records import failed, few_shot, records


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for record in [*records(), *records("lora"), failed(task="digits", method="full")]:
        store.write(record)
    return store


@pytest.fixture
def reads(monkeypatch):
    """Paths that were read and checked."""
    seen = []
    original = RunRecord.from_json

    def counted(text):
        seen.append(len(text))
        return original(text)

    monkeypatch.setattr(RunRecord, "from_json", counted)
    return seen


def same(loaded, store):
    expected = frame_of(stored(store.root)[0])
    pd.testing.assert_frame_equal(loaded.drop(columns="path"), expected, check_dtype=False)


def test_what_comes_out_is_what_the_store_holds(store):
    for _ in range(2):
        rows, rejected = index.load(store.root)
        same(rows, store)
        assert rejected == []


def test_the_second_time_nothing_is_read(store, reads):
    index.load(store.root)
    assert len(reads) == 11
    index.load(store.root)
    assert len(reads) == 11


def test_new_changed_and_deleted_records(store, reads):
    index.load(store.root)
    store.write(make_record(spec=make_spec(method="ssf"), accuracy=1.0))
    changed = store.write(make_record(spec=make_spec(task="digits"), accuracy=99.0))
    os.utime(changed, ns=(1, 1))
    (store.folder(make_spec(task="animals", method="lora")) / "record.json").unlink()
    reads.clear()
    rows, _ = index.load(store.root)
    assert len(reads) == 2
    same(rows, store)
    assert 99.0 in set(rows["accuracy"])


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00\xff", b"not json\n[]", None])
def test_a_damaged_index_is_ignored_and_made_again(store, damage, reads):
    index.load(store.root)
    path = store.root / index.INDEX_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    rows, _ = index.load(store.root)
    assert len(reads) == 22
    same(rows, store)
    assert path.read_bytes() == whole


def test_an_index_of_another_version_is_ignored(store, reads, monkeypatch):
    index.load(store.root)
    monkeypatch.setattr(index, "VERSION", "0/0")
    index.load(store.root)
    assert len(reads) == 22


def test_torn_and_foreign_records_are_named_each_time_and_read_once(store, reads):
    torn = store.folder(make_spec(task="animals", method="lora")) / "record.json"
    torn.write_text(torn.read_text()[:100])
    foreign = store.folder(make_spec(method="ssf"))
    foreign.mkdir(parents=True)
    (foreign / "record.json").write_bytes(b"\xff\xfe")
    for _ in range(2):
        rows, rejected = index.load(store.root)
        assert {bad.path.parent.name.split("-")[0] for bad in rejected} == {"lora", "ssf"}
        assert any("torn" in bad.reason for bad in rejected)
        assert len(reads) == 11  # the ten good ones and the torn one; the other is no text
    same(rows, store)


def test_no_folder_and_no_records(tmp_path):
    rows, rejected = index.load(tmp_path / "nowhere")
    assert len(rows) == 0
    assert rejected == []
    assert comparable_sets(rows) == []


def test_a_folder_that_cannot_be_written_to_does_without(store, monkeypatch):
    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(index.Path, "replace", refuse)
    same(index.load(store.root)[0], store)
    assert not list(store.root.glob("*index*"))


def test_sets_from_the_index_are_sets_from_the_records(store):
    for record in few_shot("sct", {"food101": 10}):
        store.write(record)
    index.load(store.root)
    ours, theirs = comparable_sets(index.load(store.root)[0]), comparable_sets(stored(store.root)[0])
    assert [s.key for s in ours] == [s.key for s in theirs]
    assert [list(s.rows["label"]) for s in ours] == [list(s.rows["label"]) for s in theirs]
