"""Packs: what is in them, what is not, and that no damage goes unnoticed."""

import dataclasses
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from harness.errors import HarnessError
from harness.records.pack import LARGEST_TEXT, MANIFEST_NAME, Pack, name_of, pack
from harness.records.predictions import decode
from harness.records.store import PREDICTIONS_NAME, WEIGHTS_NAME, Store
from harness.schema.failures import Failure
from harness.schema.record import RunRecord, StoredFile
from tests.command import sctbench
from tests.examples import make_record, make_spec
from tests.table_records import predictions, write_with_predictions

ENVIRONMENT = {"device": "AMD EPYC", "precision": "float32", "host": "tower.lab", "packages": {"torch": "2.11.0"}}
SECRETS = ("tower", "alice", "/home")


def predicted(method):
    return predictions(np.arange(40) < len(method))


def write_results(root):
    """Three runs, one of them failed, with paths and names, two with files; and all that a folder holds besides."""
    store = Store(root)
    for method in ("lora", "sct"):
        record = make_record(spec=make_spec(method=method), environment=ENVIRONMENT)
        write_with_predictions(root, record, predicted(method))
    store.write(
        RunRecord(
            spec=make_spec(method="full"),
            method_title="Full",
            status="failed",
            reason="FileNotFoundError: '/home/alice/data/digits/1.png'",
            failure=Failure(kind="unexpected", where='File "/home/alice/code/run.py", line 1\n alice@tower'),
            environment=ENVIRONMENT,
        )
    )
    folder = store.folder(make_spec(method="full"))
    (folder / "state").mkdir()
    for path in (folder / "lease.json", root / "index.json", root / "corrupt" / "x-record.json", folder / ".a.1.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    torn = store.folder(make_spec(method="ssf"))
    torn.mkdir()
    (torn / "record.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def whole(results):
    """A pack with predictions."""
    to = results.with_name("whole.zip")
    pack(results, to, [PREDICTIONS_NAME, WEIGHTS_NAME])
    return to


def altered(source, to, change):
    """A copy of a zip: `change` is given each name and content, and gives the new ones, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            if made := change(name, old.read(name)):
                new.writestr(*made)
    return to


class TestPacking:
    def test_the_command_says_what_is_in_and_what_is_not(self, results, tmp_path):
        told = sctbench("pack", results, "--to", "a.zip", cwd=tmp_path)
        assert "wrote a.zip: 3 records; " in told
        assert "left out: 1 corrupt records, 1 leases, 1 other files and folders, 2 predictions, 1 records, " in told
        assert "1 temporary files, 1 training states" in told
        assert f"left out {Store(results).folder(make_spec(method='ssf'))}/record.json: torn" in told
        told = sctbench("pack", results, "--to", "b.zip", "--predictions", cwd=tmp_path)
        assert "wrote b.zip: 3 records, 2 predictions; " in told
        assert "verify" not in told and sctbench("verify-pack", "b.zip", cwd=tmp_path).startswith(
            "b.zip: whole: 3 records, 2 predictions; methods: 3, tasks: 1, suites: demo; packed "
        )

    def test_weights_on_request(self, tmp_path):
        content = save({"tensors/head": np.zeros(3, np.float32)}, {"facts": "{}"})
        record = make_record(files={WEIGHTS_NAME: StoredFile.of(content)})
        Store(tmp_path / "r").write(record, {WEIGHTS_NAME: content})
        assert "1 weights; " in sctbench("pack", "r", "--to", "w.zip", "--weights", cwd=tmp_path)
        assert "left out: 1 weights" in sctbench("pack", "r", "--to", "p.zip", "--predictions", cwd=tmp_path)

    def test_no_secret_is_in_it_and_what_matters_is(self, results, whole):
        with zipfile.ZipFile(whole) as packed:
            texts = {name: packed.read(name).decode(errors="replace") for name in packed.namelist()}
        assert not [(name, secret) for name, text in texts.items() for secret in SECRETS if secret in text]
        failed = Pack(whole).record(name_of(make_spec(method="full")))
        assert failed.reason == "FileNotFoundError: '<path>/1.png'"
        assert failed.failure.where == 'File "<path>/run.py", line 1\n <user>@<host>'
        places = ["reason", "failure.where", "environment.host"]
        assert failed.environment == ENVIRONMENT | {"host": "<host>", "scrubbed": places}

    def test_a_record_is_the_same_but_for_that_and_can_be_traced(self, results, whole):
        spec = make_spec(method="lora")
        here, there = Store(results).read(spec), Pack(whole).record(name_of(spec))
        assert dataclasses.replace(there, environment=here.environment) == here
        digest = json.loads(here.to_json())["digest"]
        assert Pack(whole).manifest.files[name_of(spec)].original == digest

    def test_a_record_with_nothing_to_hide_keeps_its_digest(self, tmp_path):
        record = make_record()
        Store(tmp_path / "r").write(record)
        pack(tmp_path / "r", tmp_path / "a.zip")
        assert Pack(tmp_path / "a.zip").record(name_of(record.spec)).to_json() == record.to_json()

    def test_twice_gives_the_same_but_for_the_time(self, results, whole, tmp_path):
        pack(results, tmp_path / "again.zip", [PREDICTIONS_NAME])
        with zipfile.ZipFile(whole) as one, zipfile.ZipFile(tmp_path / "again.zip") as other:
            assert one.namelist() == other.namelist()
            names = [name for name in one.namelist() if name != MANIFEST_NAME]
            facts = [
                [(z.read(n), z.getinfo(n).date_time, z.getinfo(n).external_attr) for n in names] for z in (one, other)
            ]
        assert facts[0] == facts[1]

    def test_an_unzipped_pack_is_a_results_folder(self, results, whole, tmp_path):
        shutil.unpack_archive(whole, tmp_path / "r")
        spec = make_spec(method="sct")
        assert Store(tmp_path / "r").complete(spec).metrics == Store(results).complete(spec).metrics
        pack(tmp_path / "r", tmp_path / "again.zip")
        with zipfile.ZipFile(whole) as one, zipfile.ZipFile(tmp_path / "again.zip") as other:
            assert one.read(RECORD) == other.read(RECORD)

    def test_a_file_that_is_there_is_not_overwritten(self, results, tmp_path):
        (tmp_path / "a.zip").write_text("mine")
        assert "a.zip: there already" in sctbench("pack", results, "--to", "a.zip", cwd=tmp_path, ok=False)
        assert (tmp_path / "a.zip").read_text() == "mine"

    def test_nothing_to_pack(self, tmp_path):
        (tmp_path / "r").mkdir()
        with pytest.raises(HarnessError, match="r: no records to pack"):
            pack(tmp_path / "r", tmp_path / "a.zip")
        assert not list(tmp_path.glob("*.zip")) and not list(tmp_path.glob(".*.tmp"))

    def test_a_name_in_what_the_run_id_stands_for_keeps_the_record_out(self, tmp_path):
        secret = ENVIRONMENT | {"user": "alice"}
        backbone = dataclasses.replace(make_spec().backbone, weights="alice_vit.pth")
        Store(tmp_path / "r").write(make_record(spec=make_spec(backbone=backbone), environment=secret))
        Store(tmp_path / "r").write(make_record(spec=make_spec(suite="alice"), environment=secret))
        manifest, ((bad),) = pack(tmp_path / "r", tmp_path / "a.zip")
        (name,) = manifest.files
        assert Pack(tmp_path / "a.zip").record(name).spec.backbone.weights == "<user>_vit.pth"
        assert bad.path.parts[-4] == "alice" and bad.reason.startswith("spec.suite holds a path, or the name of")

    def test_kept_files_that_were_altered_or_tell_too_much_are_left_out(self, tmp_path):
        told = save({"x": np.zeros(3, np.float32)}, {"from": "/home/alice/x"})
        store = Store(tmp_path / "r")
        for method, content in (("sct", told), ("lora", save({"x": np.zeros(3, np.float32)}))):
            record = make_record(spec=make_spec(method=method), files={WEIGHTS_NAME: StoredFile.of(content)})
            store.write(record, {WEIGHTS_NAME: content})
        (store.folder(record.spec) / WEIGHTS_NAME).write_bytes(b"x")
        manifest, rejected = pack(tmp_path / "r", tmp_path / "a.zip", [WEIGHTS_NAME])
        assert manifest.kinds == {"records": 2} and manifest.left_out == {"weights": 2}
        assert [bad.reason for bad in rejected] == [
            "altered: its digest is not that in the record",
            "its header holds a path, or the name of a host or user",
        ]
        assert Pack(tmp_path / "a.zip").verify()[1] == []

    def test_records_of_earlier_schemas(self, tmp_path):
        old = Path(__file__).parent / "old" / "schema2"
        pack(old, tmp_path / "a.zip")
        records, wrong = Pack(tmp_path / "a.zip").verify()
        assert len(records) == 6 and not wrong


RECORD = name_of(make_spec(method="lora"))
PREDICTIONS = RECORD.replace("record.json", PREDICTIONS_NAME)


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


class TestVerifying:
    @pytest.mark.parametrize(
        ("change", "wrong"),
        [
            (
                lambda n, c: (n, flipped(c)) if n == RECORD else (n, c),
                f"{RECORD}: altered: its digest is not that in pack",
            ),
            (lambda n, c: (n, flipped(c)) if n == PREDICTIONS else (n, c), f"{PREDICTIONS}: altered"),
            (lambda n, c: None if n == RECORD else (n, c), f"{RECORD}: not in the zip file"),
            (lambda n, c: None if n == PREDICTIONS else (n, c), f"{PREDICTIONS}: not in the zip file"),
            (lambda n, c: (n.replace("lora", "more"), c), f"{RECORD.replace('lora', 'more')}: not in pack.json"),
        ],
    )
    def test_each_file_that_is_wrong_is_named(self, whole, tmp_path, change, wrong):
        altered(whole, tmp_path / "bad.zip", change)
        assert wrong in sctbench("verify-pack", "bad.zip", cwd=tmp_path, ok=False)

    def test_a_forged_manifest_does_not_help(self, whole, tmp_path):
        """Whoever edits a record and the manifest has the record's own digest against them, and the run's id."""
        body = json.loads(zipfile.ZipFile(whole).read(RECORD))
        body["metrics"]["test"]["values"]["accuracy"] = 99.9
        forged = json.dumps(body).encode()

        def change(name, content):
            if name == MANIFEST_NAME:
                manifest = json.loads(content)
                manifest["files"][RECORD] |= dataclasses.asdict(StoredFile.of(forged))
                return name, json.dumps(manifest)
            return name, forged if name == RECORD else content

        altered(whole, tmp_path / "bad.zip", change)
        _, wrong = Pack(tmp_path / "bad.zip").verify()
        assert [bad.reason for bad in wrong] == [
            "no valid record beside it names it",
            "altered: its digest does not fit its content",
        ]

    def test_a_record_in_another_runs_folder(self, whole, tmp_path):
        other = name_of(make_spec(method="sct"))
        content = zipfile.ZipFile(whole).read(RECORD)

        def change(name, old):
            if name == MANIFEST_NAME:
                manifest = json.loads(old)
                manifest["files"][other] |= dataclasses.asdict(StoredFile.of(content))
                return name, json.dumps(manifest)
            return name, content if name == other else old

        _, wrong = Pack(altered(whole, tmp_path / "bad.zip", change)).verify()
        assert f"of another run ({make_spec(method='lora').run_id})" in [bad.reason for bad in wrong]

    def test_bits_that_flip_on_disk(self, whole, tmp_path):
        content = bytearray(whole.read_bytes())
        with zipfile.ZipFile(whole) as packed:
            content[packed.getinfo(PREDICTIONS).header_offset + 200] ^= 1
        (tmp_path / "bad.zip").write_bytes(content)
        told = sctbench("verify-pack", "bad.zip", cwd=tmp_path, ok=False)
        assert f"{PREDICTIONS}: damaged: Bad CRC-32" in told and "1 of 5 files are wrong" in told

    def test_no_byte_that_changes_changes_what_counts_as_whole(self, whole, tmp_path):
        content, random = whole.read_bytes(), np.random.default_rng(0)
        directory = content.index(b"PK\x01\x02")
        with zipfile.ZipFile(whole) as packed:
            held = {name: packed.read(name) for name in packed.namelist()}
        for place in (
            directory + 6,
            *random.integers(0, len(content), 60),
            *random.integers(directory, len(content), 60),
        ):
            bad = bytearray(content)
            bad[place] = (bad[place] + 150) % 256
            (tmp_path / "bad.zip").write_bytes(bad)
            with suppress(HarnessError):
                if not Pack(tmp_path / "bad.zip").verify()[1]:
                    with zipfile.ZipFile(tmp_path / "bad.zip") as packed:
                        assert {name: packed.read(name) for name in packed.namelist()} == held

    def test_predictions_come_out_as_they_were(self, results, whole):
        opened = Pack(whole)
        read = decode(opened.stored(RECORD, opened.record(RECORD), PREDICTIONS_NAME))["test"]
        assert (read.predicted == predicted("lora").predicted).all()


def named(to, name, content=b"x", **facts):
    with zipfile.ZipFile(to, "w") as made:
        info = zipfile.ZipInfo("x")
        info.filename = name
        made.writestr(info, content, **facts)
    return to


class TestRefusing:
    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a//x", "C:/x", "a\\..\\x", "./x"])
    def test_names_that_lead_out(self, tmp_path, name):
        named(tmp_path / "a.zip", name)
        told = sctbench("verify-pack", "a.zip", cwd=tmp_path, ok=False)
        assert "a.zip: refused: " in told and "leads out of it" in told

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_one_name_twice(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
            made.writestr("x", "1")
            made.writestr("x", "2")
        with pytest.raises(HarnessError, match="'x' is in it twice"):
            Pack(tmp_path / "a.zip")

    def test_sizes_made_to_fill_memory(self, tmp_path):
        zeros = bytes(2 * 2**20)
        named(tmp_path / "a.zip", "x", zeros, compress_type=zipfile.ZIP_DEFLATED)
        with pytest.raises(HarnessError, match=r"'x' has 2,097,152 bytes out of 2,\d{3}, as no pack's files do"):
            Pack(tmp_path / "a.zip")
        named(tmp_path / "b.zip", "pack.json", bytes(LARGEST_TEXT + 1))
        with pytest.raises(HarnessError, match="no record is so large"):
            Pack(tmp_path / "b.zip")

    def test_other_ways_to_compress(self, tmp_path):
        named(tmp_path / "a.zip", "x", compress_type=zipfile.ZIP_BZIP2)
        with pytest.raises(HarnessError, match="in a way that no pack uses"):
            Pack(tmp_path / "a.zip")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"{", "pack.json: Expecting"),
            (b'{"format": 2}', "its format is 2, and this version reads 1"),
            (b"[]", "no pack that this version reads"),
        ],
    )
    def test_other_zips(self, tmp_path, content, words):
        named(tmp_path / "a.zip", "pack.json", content)
        with pytest.raises(HarnessError, match=words):
            Pack(tmp_path / "a.zip")

    def test_other_files(self, tmp_path):
        (tmp_path / "a.zip").write_text("x")
        with pytest.raises(HarnessError, match=r"a\.zip: no pack: File is not a zip file"):
            Pack(tmp_path / "a.zip")
        with pytest.raises(HarnessError, match=r"b\.zip: cannot be read \(No such file"):
            Pack(tmp_path / "b.zip")
        named(tmp_path / "c.zip", "x")
        with pytest.raises(HarnessError, match=r"pack\.json: not in the zip file"):
            Pack(tmp_path / "c.zip")
