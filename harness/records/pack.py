"""Packs: the records of a results folder in one zip file, for others.

Names inside are those of a results folder, so that an unzipped pack is one:

    runs/<suite>/<task>/<method>-<run id>/record.json   without paths, host and user names (`harness.records.scrub`)
    runs/.../predictions.safetensors, weights.safetensors   on request, as the record names them
    pack.json   the manifest: size and sha256 of every file, the digest that each record had, and what was left out

A record keeps the names and digests of files that were left out: they take nothing from it, as files that are deleted
later do not. One that had to be scrubbed says where under `environment.scrubbed`, and has a digest of its own.

Digests find damage and careless edits. They are no signature: whoever edits a record can compute them anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from os import scandir
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from harness.errors import HarnessError
from harness.lease import LEASE_NAME
from harness.paths import cache_folder, write_atomically, writing
from harness.records.index import record_stamps, run_folders
from harness.records.scrub import Scrubber
from harness.records.store import (
    CORRUPT,
    KEPT_FILES,
    PREDICTIONS_NAME,
    PROGRESS_NAME,
    RECORD_NAME,
    SUPERSEDED,
    WEIGHTS_NAME,
    Rejected,
    Store,
    read_stored,
)
from harness.schema.record import BadRecord, RunRecord, StoredFile
from harness.schema.spec import RunSpec, canonical_json
from harness.tensor_header import header
from harness.terminal import Advance, tracked

FORMAT = 1
"""Version of a pack's layout."""

MANIFEST_NAME = "pack.json"

SCRUBBED = "scrubbed"
"""Key of a record's environment: the places where something was replaced."""

LARGEST_TEXT = 64 * 2**20
"""Bytes of a record or manifest that are read at most."""

MOST_PACKED = 200
"""How many times smaller than its content a file of more than `SMALL` bytes may be in the zip. Records shrink to a
tenth, and kept files are stored as they are; what claims more was made to fill memory."""

SMALL = 2**20

CHUNK = 2**20
"""Bytes of a kept file that are in memory at a time."""

LEFT_OUT = {
    RECORD_NAME: "records",
    PREDICTIONS_NAME: "predictions",
    WEIGHTS_NAME: "weights",
    LEASE_NAME: "leases",
    PROGRESS_NAME: "progress files",
    "state": "training states",
}
"""What is left out of runs' folders, by name, as the manifest calls it."""

OTHER = "other files and folders"
CORRUPT_RECORDS, SUPERSEDED_RESULTS = "corrupt records", "superseded results"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A file of a pack."""

    size: int
    """In bytes."""

    sha256: str

    original: str = ""
    """Of a record: the digest that it had in the results folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a pack says of itself."""

    version: str
    """Of the program that packed it."""

    packed: str
    """When, in UTC."""

    files: dict[str, PackedFile]
    """By name."""

    left_out: dict[str, int]
    """How many things of each kind the results folder held besides."""

    format: int = FORMAT

    @property
    def kinds(self) -> dict[str, int]:
        """How many files of each kind it has."""
        counts = Counter(_kind(PurePosixPath(name).name) for name in self.files)
        return {kind: counts[kind] for kind in LEFT_OUT.values() if counts[kind]}

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`. `ValueError`, `KeyError`, `TypeError` or `AttributeError` for anything else."""
        body = json.loads(text)
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']}, and this version reads {FORMAT}")
        return cls(**body | {"files": {name: PackedFile(**file) for name, file in body["files"].items()}})


def name_of(spec: RunSpec, file: str = RECORD_NAME) -> str:
    """Name of a run's file in a pack."""
    return (Store(Path()).folder(spec) / file).as_posix()


class _Unfit(Exception):
    """A record or file that cannot be shared; the message is the reason."""


def pack(
    root: Path, to: Path, kept: Collection[str] = (), advance: Advance | None = None
) -> tuple[Manifest, list[Rejected]]:
    """Pack the valid records below `root`, complete and failed, with those of `KEPT_FILES` that are named in `kept`.

    Gives the manifest, and the records and kept files that could not be taken, with the reason. `advance` is called
    with the number of records done and their total. `HarnessError` if `to` is there already, or no record is valid.
    """
    if to.exists():
        raise HarnessError(f"{to}: there already; delete it, or give --to another name")
    paths = [path for path, stamp in record_stamps(root).items() if stamp]
    packer = _Packer(root, kept)
    with writing(to.parent, "--to"):
        write_atomically(to, lambda file: packer.write(file, tracked(paths, len(paths), advance)))
    return packer.manifest, packer.rejected


class _Packer:
    """Writes one pack."""

    manifest: Manifest
    """Once it is written."""

    def __init__(self, root: Path, kept: Collection[str]) -> None:
        self.rejected: list[Rejected] = []
        self._root, self._kept = root, kept
        self._scrubber = Scrubber([root])
        self._files: dict[str, PackedFile] = {}

    def write(self, file: BinaryIO, paths: Iterable[str]) -> None:
        with zipfile.ZipFile(file, "w") as self._zip:
            for path in paths:
                self._try_run(path)
            if not self._files:
                raise HarnessError(f"{self._root}: no records to pack{_reasons(self.rejected)}")
            self.manifest = Manifest(
                version=version("sctbench"),
                packed=datetime.now(UTC).isoformat(timespec="seconds"),
                files=self._files,
                left_out=left_out(self._root, self._files),
            )
            self._write(MANIFEST_NAME, self.manifest.to_json().encode())

    def _try_run(self, path: str) -> None:
        try:
            self._add_run(path)
        except OSError as error:
            self._reject(self._root / path, f"cannot be read ({error.strerror})")
        except (_Unfit, BadRecord) as error:
            self._reject(self._root / path, str(error))

    def _add_run(self, path: str) -> None:
        body, record = _parsed((self._root / path).read_bytes())
        if name_of(record.spec) != path:
            raise _Unfit(f"not in the folder of its run, {PurePosixPath(name_of(record.spec)).parent}")
        original = body.pop("digest")
        shared = _shared(body, self._scrubber)
        self._put(path, _with_digest(shared), original)
        for name in KEPT_FILES:
            if name in record.files and name in self._kept:
                self._add_kept(path, record, name, body)

    def _add_kept(self, path: str, record: RunRecord, name: str, body: Mapping[str, Any]) -> None:
        folder = (self._root / path).parent
        try:
            content = read_stored(folder, record, name)
        except HarnessError as error:
            self._reject(folder / name, str(error).removeprefix(f"{folder / name}: "))
            return
        if self._scrubber.reveals(body, header(content).decode(errors="replace")):
            self._reject(folder / name, "its header holds a path, or the name of a host or user")
        else:
            self._put(str(PurePosixPath(path).with_name(name)), content)

    def _put(self, name: str, content: bytes, original: str = "") -> None:
        self._write(name, content)
        self._files[name] = PackedFile(**asdict(StoredFile.of(content)), original=original)

    def _write(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name)  # with a time of its own, so that the same records give the same bytes
        info.create_system, info.external_attr = 3, 0o644 << 16
        text = name.endswith(".json")
        self._zip.writestr(info, content, zipfile.ZIP_DEFLATED if text else zipfile.ZIP_STORED)

    def _reject(self, path: Path, reason: str) -> None:
        self.rejected.append(Rejected(path, reason))


def _reasons(rejected: Collection[Rejected]) -> str:
    return "".join(f"\n{bad.path}: {bad.reason}" for bad in rejected)


def _parsed(content: bytes) -> tuple[dict[str, Any], RunRecord]:
    """A record's document and the record. `BadRecord` if it is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"torn: {error}") from None
    return body, RunRecord.from_document(body)


def _with_digest(body: dict[str, Any]) -> bytes:
    """The content of a record's file, in one line: `canonical_json` is made in a tenth of the time of an indented
    text."""
    text = canonical_json(body)
    return f'{{"digest":"{hashlib.sha256(text.encode()).hexdigest()}",{text[1:]}\n'.encode()


def _shared(body: dict[str, Any], scrubber: Scrubber) -> dict[str, Any]:
    """A record's document as others may see it. `_Unfit` where the spec, which decides the run's id, would be
    another."""
    shared, places = scrubber.document(body)
    if shared["spec"] != body["spec"] and RunSpec.from_dict(shared["spec"]).run_id != body["run_id"]:
        where = next(place for place in places if "spec" in place)
        raise _Unfit(
            f"{where} holds a path, or the name of a host or user, and is part of what the run's id is made of"
        )
    if places:
        shared["environment"] = {**(shared["environment"] or {}), SCRUBBED: places}
    return shared


def left_out(root: Path, taken: Collection[str]) -> dict[str, int]:
    """How many things of each kind a results folder holds besides the files that were taken."""
    counts: Counter[str] = Counter()
    for folder in run_folders(root):
        names = [entry.name for entry in scandir(root / "runs" / folder)]
        counts.update(_kind(name) for name in names if f"runs/{folder}/{name}" not in taken)
    for path in root.iterdir():
        if path.name == CORRUPT:
            counts[CORRUPT_RECORDS] += len(list(path.glob(f"*-{RECORD_NAME}")))
        elif path.name == SUPERSEDED:
            counts[SUPERSEDED_RESULTS] += len(list(path.iterdir()))
        elif path.name != "runs":
            counts[OTHER] += 1
    return {kind: counts[kind] for kind in sorted(counts) if counts[kind]}


def _kind(name: str) -> str:
    return "temporary files" if name.endswith(".tmp") else LEFT_OUT.get(name, OTHER)


class Pack:
    """A pack that is read: in memory, file by file; nothing is extracted.

    `HarnessError` for a file that is no pack, or that is not safe to read: names that lead out of it, the same name
    twice, sizes made to fill memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise HarnessError(f"{path}: cannot be read ({error.strerror})") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise HarnessError(f"{path}: no pack: {error}") from None
        self._infos = self._checked()
        self.manifest = self._manifest()

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = info.orig_filename
            if reason := _unsafe(info):
                raise HarnessError(f"{self.path}: refused: {name!r} {reason}")
            if name in infos:
                raise HarnessError(f"{self.path}: refused: {name!r} is in it twice")
            infos[name] = info
        return {name: info for name, info in infos.items() if not name.endswith("/")}

    def _manifest(self) -> Manifest:
        try:
            return Manifest.from_json(self._read(MANIFEST_NAME).decode())
        except (BadRecord, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HarnessError(f"{self.path}: no pack that this version reads: {MANIFEST_NAME}: {error}") from None

    @property
    def names(self) -> list[str]:
        """Names of the files that are in it or should be, less the manifest, in order."""
        return sorted({*self.manifest.files, *self._infos} - {MANIFEST_NAME})

    @property
    def records(self) -> list[str]:
        """Names of the records among them."""
        return [name for name in self.names if PurePosixPath(name).name == RECORD_NAME]

    def index_path(self) -> Path:
        """Where the cache keeps what was read of it, under the digest of the whole file."""
        with self.path.open("rb") as file:
            return cache_folder() / "packs" / f"{hashlib.file_digest(file, 'sha256').hexdigest()}.json"

    def holds(self, name: str, file: str) -> bool:
        """Whether the file lies beside the record of that name."""
        return str(PurePosixPath(name).with_name(file)) in self._infos

    def record(self, name: str) -> RunRecord:
        """The record of that name. `BadRecord` if it is not the one that the manifest names, altered, or not that of
        the run in whose folder it lies."""
        content = self._read(name)
        self._check_listed(name, StoredFile.of(content))
        body, record = _parsed(content)
        if name_of(record.spec) != name or body.get("run_id") != record.spec.run_id:
            raise BadRecord(f"of another run ({record.spec.run_id})")
        return record

    def stored(self, name: str, record: RunRecord, file: str) -> bytes:
        """The content of a file that the record of that name has beside it, compared with its digest. `HarnessError` if
        it was left out, or was changed."""
        beside = str(PurePosixPath(name).with_name(file))
        if beside not in self._infos:
            raise HarnessError(f"{self.path}: packed without {beside}")
        try:
            content = self._read(beside)
        except BadRecord as error:
            raise HarnessError(f"{self.path}: {beside}: {error}") from None
        if StoredFile.of(content) != record.files.get(file):
            raise HarnessError(f"{self.path}: {beside}: altered: its digest is not that in the record")
        return content

    def verify(self, advance: Advance | None = None) -> tuple[list[RunRecord], list[Rejected]]:
        """Check every digest: the records that are whole, and what is wrong with which file. `advance` is called with
        the number of files done and their total."""
        names = dict.fromkeys([*self.records, *self.names])  # records first: they say what is beside them
        records: dict[str, RunRecord] = {}
        wrong: dict[str, str] = {}
        for name in tracked(names, len(names), advance):
            try:
                if PurePosixPath(name).name == RECORD_NAME:
                    records[name] = self.record(name)
                else:
                    self._check_kept(name, records)
            except BadRecord as error:
                wrong[name] = str(error)
        bad = [Rejected(self.path / name, wrong[name]) for name in sorted(wrong)]
        return list(records.values()), bad

    def _check_kept(self, name: str, records: Mapping[str, RunRecord]) -> None:
        """`BadRecord` if a file that is no record is not whole, or not that of the record beside it."""
        owner = records.get(str(PurePosixPath(name).with_name(RECORD_NAME)))
        stored = owner.files.get(PurePosixPath(name).name) if owner else None
        found = self._facts(name)
        if stored is None:
            raise BadRecord("no valid record beside it names it")
        self._check_listed(name, found)
        if found != stored:
            raise BadRecord("altered: its digest is not that in the record")

    def _check_listed(self, name: str, found: StoredFile) -> None:
        listed = self.manifest.files.get(name)
        if listed is None:
            raise BadRecord(f"not in {MANIFEST_NAME}")
        if (listed.size, listed.sha256) != (found.size, found.sha256):
            raise BadRecord(f"altered: its digest is not that in {MANIFEST_NAME}")

    def _read(self, name: str) -> bytes:
        return b"".join(self._chunks(name))

    def _facts(self, name: str) -> StoredFile:
        size, sha256 = 0, hashlib.sha256()
        for chunk in self._chunks(name):
            size += len(chunk)
            sha256.update(chunk)
        return StoredFile(size=size, sha256=sha256.hexdigest())

    def _chunks(self, name: str) -> Iterator[bytes]:
        """A file's content. `BadRecord` if it is not there or damaged."""
        if name not in self._infos:
            raise BadRecord("not in the zip file")
        try:
            with self._zip.open(self._infos[name]) as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise BadRecord(f"damaged: {error}") from None


def _unsafe(info: zipfile.ZipInfo) -> str:
    """Why a file of a zip must not be read; empty if nothing speaks against it."""
    name = info.orig_filename
    if re.search(r"^[/\\]|^[A-Za-z]:|\\|\0", name) or any(
        part in ("", ".", "..") for part in name.rstrip("/").split("/")
    ):
        return "leads out of it"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that no pack uses"
    if name.endswith(".json") and info.file_size > LARGEST_TEXT:
        return f"has {info.file_size:,} bytes; no record is so large"
    if info.file_size > max(SMALL, MOST_PACKED * info.compress_size):
        return f"has {info.file_size:,} bytes out of {info.compress_size:,}, as no pack's files do"
    return ""
