"""What a change of images does: to arrays, to the fingerprint, and to what is said of complete runs."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import arrays, decoding
from harness.data import splits as data
from harness.data.lists import Roots
from harness.errors import HarnessError
from harness.schema.record import Fingerprint, same_data
from tests import layouts
from tests.examples import make_record, make_spec


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A toy task whose test list, of 40, holds images whose bytes no sample of 16 includes."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    return layouts.toy(tmp_path / "root", test=40).parent


def store(path, pixels, **options):
    Image.fromarray(pixels).save(path, **({"compress_level": 0} | options))


view = layouts.toy_data


def change(root, name="test/1.png"):
    """Other pixels under the same name, size and time of modification."""
    path = root / "toy/images" / name
    before = path.stat()
    store(path, 255 - np.asarray(Image.open(path)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def count_decodings(monkeypatch):
    """The images decoded from now on."""
    seen, plain = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda path, **how: seen.append(path) or plain(path, **how))
    return seen


def other_data(root, *records):
    return list(data.done_on_other_data(layouts.TOYS, records, Roots(data=root), layouts.HALF))


def record_of(fingerprint):
    return dataclasses.replace(make_record(spec=make_spec(task="toy")), data=fingerprint)


def test_other_content_with_the_same_size_and_time_makes_a_new_array(root):
    before = view(root).open_test()["test"].images.clone()
    change(root)
    assert not torch.equal(view(root).open_test()["test"].images, before)


@pytest.mark.parametrize("link", [False, True])
def test_a_changed_image_that_a_list_names_by_its_absolute_path_makes_a_new_array(root, tmp_path, link):
    file, elsewhere = root / "toy/test.txt", tmp_path / "elsewhere"
    (root / "toy/images/test").rename(elsewhere)
    if link:  # by a folder that is one
        (root / "toy/images/test").symlink_to(elsewhere)
        elsewhere = root / "toy/images/test"
    file.write_text(file.read_text().replace("images/test", str(elsewhere)))
    before, array = view(root).fingerprint(), view(root).open_test()["test"].images.clone()
    store(elsewhere / "1.png", np.zeros((20, 30, 3), np.uint8))
    assert not torch.equal(view(root).open_test()["test"].images, array)
    assert view(root).fingerprint().pixels != before.pixels


def test_a_process_that_has_read_a_split_sees_it_change(root):
    before = view(root).train("train").images.clone()
    change(root, "train/1.png")
    assert not torch.equal(view(root).train("train").images, before)


def test_a_list_of_the_same_size_and_time_is_read_again(root):
    assert view(root).entries("train")[0].label == 0
    for file in (root / "toy/train800.txt", root / "toy/train800val200.txt"):
        before = file.stat()
        file.write_text(file.read_text().replace("train/0.png 0", "train/0.png 1"))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert view(root).entries("train")[0].label == 1


def test_any_changed_image_changes_the_fingerprint_and_another_file_of_the_same_pixels_does_not(root):
    before = view(root).fingerprint()
    change(root)
    changed = view(root).fingerprint()
    assert (changed.lists, changed.files) == (before.lists, before.files)  # the sample does not see it
    assert changed.pixels != before.pixels
    path = root / "toy/images/test/1.png"
    store(path, np.asarray(Image.open(path)), compress_level=9)
    assert view(root).fingerprint().pixels == changed.pixels
    first, last = (root / f"toy/images/test/{number}.png" for number in (2, 3))
    first.rename(root / "aside")
    last.rename(first)
    (root / "aside").rename(last)
    assert view(root).fingerprint().pixels != changed.pixels


def test_the_fingerprint_is_the_same_from_arrays_from_files_and_from_what_was_kept(root, monkeypatch):
    seen = count_decodings(monkeypatch)
    before = view(root).fingerprint()
    assert (len(seen), arrays.cached()) == (6 + 3 + 40, [])  # those of trainval stand in train and val
    assert view(root).fingerprint() == before and len(seen) == 49
    for kept in arrays.folder().glob("*.sha256"):
        kept.unlink()
    task = view(root)
    task.train("trainval")
    task.decode("test")
    seen.clear()
    assert task.fingerprint() == before and seen == []
    assert arrays.clear() > 0 and arrays.cached() == []
    assert view(root).fingerprint() == before and seen == []


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: bytes(32) + b[32:], lambda _: b""])
def test_damaged_digests_are_made_anew(root, damage):
    before = view(root).fingerprint()
    for kept in arrays.folder().glob("*.sha256"):
        kept.write_bytes(damage(kept.read_bytes()))
    assert view(root).fingerprint() == before


def test_images_that_change_while_they_are_decoded_make_no_array(root, monkeypatch):
    plain = decoding.decode

    def decode(path, **how):
        pixels = plain(path, **how)
        if path.name == "39.png":
            change(root)
        return pixels

    monkeypatch.setattr(decoding, "decode", decode)
    with pytest.raises(HarnessError, match=r"test\.txt: images changed while they were decoded"):
        view(root).open_test()
    assert arrays.cached() == []


def test_complete_runs_on_other_pixels_are_named_and_old_records_compare_by_what_they_have(root):
    fingerprint = view(root).fingerprint()
    known, unknown = record_of(fingerprint), record_of(dataclasses.replace(fingerprint, pixels=""))
    assert other_data(root, known, unknown) == []
    change(root)
    said = "1 complete run(s) of toy were done on other data than there are now (images differ)"
    assert other_data(root, known, unknown) == [said]
    change(root, "test/0.png")  # one of the sample: the old record knows its bytes
    assert other_data(root, known, unknown) == [said.replace("1", "2", 1)]


def test_images_are_decoded_for_the_comparison_only_where_files_changed(root, monkeypatch):
    record = record_of(view(root).fingerprint())
    seen = count_decodings(monkeypatch)
    assert other_data(root, record) == [] and seen == []
    change(root)
    assert len(other_data(root, record)) == 1
    assert {path.parent.name for path in seen} == {"test"}
    assert arrays.cached() == []


def test_data_that_cannot_be_compared_are_named(root):
    record = record_of(view(root).fingerprint())
    (root / "toy/images/test/1.png").unlink()
    (line,) = other_data(root, record, record)
    assert line.startswith("2 complete run(s) of toy cannot be compared with the data there are now: ")
    assert line.endswith("test/1.png: listed, but there is no such file")


def test_digests_as_text_are_compared_by_what_both_have():
    full = Fingerprint(lists="l", files="f", sizes={}, pixels="p")
    old, other = dataclasses.replace(full, pixels=""), dataclasses.replace(full, pixels="q")
    assert (full.digest, old.digest) == ("l/f/p", "l/f")
    assert same_data(full.digest, old.digest) and same_data(old.digest, other.digest)
    assert not same_data(full.digest, other.digest)
    assert [full.differs_from(now) for now in (full, old, other)] == ["", "", "images differ"]


def test_listing_and_clearing_pass_over_what_is_no_array(root):
    view(root).open_test()
    (array,) = arrays.cached()
    (arrays.folder() / "gone.npy").symlink_to(root / "nothing")
    (arrays.folder() / "folder.npy").mkdir()
    assert arrays.cached() == [array]
    assert arrays.clear() == array.bytes
    assert [path.name for path in arrays.folder().iterdir() if path.suffix != ".sha256"] == ["folder.npy"]
