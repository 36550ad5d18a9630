"""Decoding in threads and in processes: the same bytes, the same errors, and nothing left behind."""

import hashlib
import os
import signal

import numpy as np
import pytest

from harness.data import arrays, decode_all, decoding
from harness.data.arrays import ImageArray
from harness.data.lists import Entries, Entry, ImageList, ListFile
from harness.errors import DataError, HarnessError
from tests import layouts

COUNT = 70


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of different sizes and formats, more than one part of them."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    for number in range(COUNT):
        layouts.image(tmp_path / f"images/{number}.{('png', 'jpg')[number % 2]}", number)
    return tmp_path / "images"


def array_of(folder, count=COUNT):
    names = [f"{number}.{('png', 'jpg')[number % 2]}" for number in range(count)]
    entries = Entries(Entry(name, 0, line) for line, name in enumerate(names, start=1))
    return ImageArray(
        label="x", images=ImageList(ListFile(folder / "list", folder), entries), preprocessing=layouts.HALF
    )


def in_processes(monkeypatch):
    monkeypatch.setattr(decode_all, "PROCESSES_FROM", 1)
    monkeypatch.setattr(decode_all, "CORES_FROM", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_processes_and_threads_write_the_same_bytes(folder, monkeypatch):
    array = array_of(folder)
    threads = array.build().read_bytes()
    digests = array.pixel_digests(array.path())
    arrays.clear()
    in_processes(monkeypatch)
    seen = []
    assert array.build(advance=lambda *at: seen.append(at)).read_bytes() == threads
    assert seen == [(32, COUNT), (64, COUNT), (COUNT, COUNT)]
    decoded = [decoding.decode(path, layouts.HALF) for path in map(folder.joinpath, array.images.entries.names)]
    assert np.array_equal(array.load(), np.stack(decoded))
    assert digests.tobytes() == b"".join(hashlib.sha256(image.tobytes()).digest() for image in decoded)


@pytest.mark.parametrize("processes", [False, True])
def test_the_first_image_that_cannot_be_decoded_is_named_and_nothing_is_left(folder, monkeypatch, processes):
    for number in (41, 67):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    if processes:
        in_processes(monkeypatch)
    with pytest.raises(DataError, match=r"41\.jpg: cannot be decoded"):
        array_of(folder).build()
    assert not [path for path in arrays.folder().iterdir() if path.suffix != ".lock"]


def test_a_short_list_starts_no_process(folder, monkeypatch):
    monkeypatch.setattr(decode_all, "processes", None)
    array_of(folder).build()


def _killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_that_leaves_nothing(folder, monkeypatch):
    in_processes(monkeypatch)
    monkeypatch.setattr(decode_all, "_decode", _killed)
    with pytest.raises(HarnessError, match="was killed"):
        array_of(folder).build()
    assert not [path for path in arrays.folder().iterdir() if path.suffix != ".lock"]
