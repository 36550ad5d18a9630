"""List files, decoding, cached arrays, fingerprints and the one look at the test split."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import arrays, decoding
from harness.data import splits as data
from harness.data.lists import Entries, Entry, ImageList, ListFile, Roots, read_list
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.schema import failures
from tests import layouts
from tests.examples import make_record, make_spec


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    forget()
    return layouts.toy(tmp_path / "root")


def forget():
    """What this process holds in memory."""
    data._load_split.cache_clear()
    data._images.cache_clear()


def toy(folder):
    return layouts.toy_data(folder.parent)


def test_arrays_hold_exactly_the_decoded_images(folder):
    split = toy(folder).train("trainval")
    assert split.images.shape == (9, 16, 16, 3)
    assert split.images.dtype == torch.uint8
    assert split.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    with Image.open(folder / "images/val/2.png") as image:
        direct = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(split.images[8].numpy(), direct)


def test_second_reading_comes_from_the_cache(folder, monkeypatch):
    first = toy(folder).train("train").images.clone()
    forget()
    monkeypatch.setattr(decoding, "decode", lambda *_, **__: pytest.fail("decoded again"))
    assert torch.equal(toy(folder).train("train").images, first)


def test_complete_runs_on_other_data_are_named(folder):
    before = toy(folder)
    record = dataclasses.replace(make_record(spec=make_spec(task="toy")), data=before.fingerprint())
    bare = dataclasses.replace(record, data=None)

    def told(**changes):
        suite = dataclasses.replace(before.suite, tasks=(dataclasses.replace(before.task, **changes),))
        return list(data.done_on_other_data(suite, [record, record, bare], Roots(data=folder.parent), layouts.HALF))

    assert told() == []
    first = "2 complete run(s) of toy were done on other data than there are now "
    assert told(num_classes=4) == [first + "(labels, names, classes or final split differ)"]
    Image.new("RGB", (40, 40)).save(folder / "images/test/0.png")
    assert told() == [first + "(images differ)"]
    with (folder / "test.txt").open("a") as file:
        file.write("images/test/0.png 1\n")
    assert told() == [first + "(lists differ (test 9 instead of 10))"]


@pytest.mark.parametrize("damage", [lambda b: b[:128] + bytes(len(b) - 128), lambda b: b[: len(b) // 2], lambda _: b""])
def test_a_damaged_array_is_built_anew(folder, damage):
    pixels = toy(folder).open_test()["test"].images.clone()
    (array,) = arrays.cached()
    array.path.write_bytes(damage(array.path.read_bytes()))
    assert torch.equal(toy(folder).open_test()["test"].images, pixels)


def test_a_whole_array_is_compared_with_its_checksum_once(folder, monkeypatch):
    toy(folder).open_test()
    toy(folder).open_test()
    monkeypatch.setattr(arrays, "_checksum", lambda *_: pytest.fail("read again"))
    toy(folder).open_test()


def test_any_image_that_changes_makes_a_new_array(folder):
    """All of them are seen, not those alone whose bytes the fingerprint samples."""
    lines = (folder / "test.txt").read_text().splitlines() * 9
    (folder / "test.txt").write_text("\n".join(sorted(lines)))
    toy(folder).open_test()
    for number in range(9):
        Image.new("RGB", (40, 40)).save(folder / f"images/test/{number}.png")
        toy(folder).open_test()
    assert len(arrays.cached()) == 10


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 32, 100])
def test_the_sample_of_images_is_evenly_spaced(folder, monkeypatch, count):
    seen = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: seen.append(int(self.name)) or b"")
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    arrays.sample_digest(ImageList(ListFile(folder, folder), Entries(Entry(str(i), 0, i) for i in range(count))))
    assert len(seen) == len(set(seen)) == min(16, count)
    assert max(np.diff([*seen, count])) <= -(-count // 16)


def test_a_cache_that_cannot_be_written_to_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(HarnessError, match=r"the cache .*/file cannot be written to .*--cache-dir") as found:
        toy(folder).open_test()
    kind = failures.kind_of(found.value)
    assert (kind.name, kind.again, kind.ends_all) == ("read_only", True, True)
    for look in (arrays.cached, arrays.clear):
        with pytest.raises(HarnessError, match=r"the cache .*/file cannot be written to"):
            look()


def test_fingerprint_sees_lists_and_pixels(folder):
    before = toy(folder).fingerprint()
    assert before.sizes == {"train": 6, "val": 3, "trainval": 9, "test": 9}
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "images/test/0.png")
    pixels = toy(folder).fingerprint()
    assert (pixels.lists, pixels.files) != (before.lists, before.files)
    assert pixels.lists == before.lists
    (folder / "test.txt").write_text("images/test/0.png 1\n")
    assert toy(folder).fingerprint().lists != before.lists


def test_the_test_split_opens_once(folder):
    task = toy(folder)
    assert task.test_looks == 0
    assert len(task.open_test()["test"]) == 9
    assert task.test_looks == 1
    with pytest.raises(HarnessError, match="already opened"):
        task.open_test()
    with pytest.raises(HarnessError, match=r"only by TaskData\.open_test"):
        task.train("test")


@pytest.mark.parametrize("line", ["images/train/0.png", "images/train/0.png x", "images/train/0.png 3", "0.png -1"])
def test_a_bad_line_is_named_with_file_and_number(folder, line):
    (folder / "train800.txt").write_text(f"images/train/0.png 0\n\n{line}\n")
    with pytest.raises(HarnessError, match=r"train800\.txt:3: .* label from 0 to 2"):
        toy(folder).train("train")


def test_paths_with_spaces_and_windows_line_ends_are_read(folder):
    (folder / "images/train/0.png").rename(folder / "images/train/a b.png")
    (folder / "train800.txt").write_bytes(b"images/train/a b.png 2\r\n\r\n")
    assert list(read_list(folder / "train800.txt", 3)) == [Entry("images/train/a b.png", 2, 1)]


def test_missing_and_broken_images_are_named(folder):
    (folder / "images/test/0.png").unlink()
    with pytest.raises(HarnessError, match=r"test/0\.png: listed, but there is no such file"):
        toy(folder).open_test()
    (folder / "images/test/0.png").write_bytes(b"not an image")
    with pytest.raises(HarnessError, match=r"test/0\.png: cannot be decoded"):
        toy(folder).open_test()


def test_a_suite_without_data_asks_for_its_folder(folder):
    with pytest.raises(HarnessError, match="--root"):
        TaskData(layouts.TOYS, layouts.TOY, layouts.HALF)


def test_an_image_of_the_test_split_may_not_be_trained_on(folder):
    for name in ("val200.txt", "train800val200.txt"):
        with (folder / name).open("a") as file:
            file.write("images/test/4.png 1\n")
    with pytest.raises(HarnessError, match=r"val200\.txt:4: images/test/4\.png is also in .*test\.txt"):
        toy(folder)


def test_several_builders_of_one_array_decode_each_image_once(folder, monkeypatch):
    tasks, calls, plain = [toy(folder) for _ in range(4)], [], decoding.decode

    def decode(path, **how):
        calls.append(path)
        return plain(path, **how)

    monkeypatch.setattr(decoding, "decode", decode)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda task: task.open_test()["test"].images.numpy(), tasks))
    assert len(calls) == 9
    assert all(np.array_equal(results[0], other) for other in results)


def test_the_cache_is_listed_and_cleared(folder):
    toy(folder).open_test()
    (array,) = arrays.cached()
    assert array.bytes >= arrays.array_bytes(9, layouts.HALF) == 9 * 16 * 16 * 3
    assert arrays.clear() == array.bytes
    assert arrays.cached() == []
    forget()
    assert len(toy(folder).open_test()["test"]) == 9


def test_clearing_leaves_an_array_that_is_being_built(folder):
    toy(folder).open_test()
    (array,) = arrays.cached()
    with arrays._lock(array.path):
        assert arrays.clear() == 0
        assert array.path.is_file()
    array.path.with_suffix(".123-ab.tmp").write_bytes(bytes(5))  # a builder was killed
    assert arrays.clear() == array.bytes + 5
    assert {path.suffix for path in arrays.folder().iterdir()} == {".sha256"}


def test_clearing_leaves_builders_apart(folder):
    """One that has opened the lock file when it is deleted does not believe that it holds the lock."""
    path, entered = arrays.folder() / "toy-test.npy", []

    def builder():
        with arrays._lock(path):
            entered.append(path.with_suffix(".lock").is_file())

    with ThreadPoolExecutor(1) as pool, arrays._lock(path):
        pool.submit(builder)
        time.sleep(0.2)
        path.with_suffix(".lock").unlink()  # as `clear` does that holds the lock
    assert entered == [True]
