"""Exported data are read back by the same suite: same pixels, same labels, in every kind of layout."""

import dataclasses
import errno
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from harness.commands.main import app
from harness.data import decoding
from harness.data.check import check
from harness.data.export import ImageFormat, export
from harness.data.lists import Roots
from harness.data.splits import TaskData
from harness.errors import HarnessError, PlaceError
from harness.paths import writing
from harness.schema import failures
from suites import SUITES
from tests import layouts


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))


def everything(suite, task, roots):
    """All splits of all draws."""
    for draw in suite.draws():
        data = TaskData(suite, task, layouts.SMALL, roots, *draw)
        yield from ((split, data.train(split)) for split in task.lists if split != "test")
        yield from data.open_test().items()


def same(suite, task, one, other):
    pairs = zip(everything(suite, task, one), everything(suite, task, other), strict=True)
    for (name, a), (other_name, b) in pairs:
        assert name == other_name
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def make_vtab(root):
    layouts.vtab(root, "svhn", "jpg")
    return dataclasses.replace(layouts.VTAB, tasks=(layouts.VTAB.task("svhn"),))


def make_few_shot(root):
    layouts.few_shot(root / "food-101/images", root / "few-shot/food101/annotations", layouts.FEWSHOT)
    return dataclasses.replace(layouts.FEWSHOT, tasks=(layouts.FEWSHOT.task("food101"),))


def make_shifted(root):
    layouts.imagenet(root, root)
    return layouts.DG


def make_fgvc(root):
    layouts.fgvc(root / "fgvc", "CUB_200_2011", "images")
    return dataclasses.replace(layouts.FGVC, tasks=(layouts.FGVC.task("cub"),))


@pytest.mark.parametrize("make", [make_vtab, make_few_shot, make_shifted, make_fgvc])
def test_every_layout_survives_the_way_there_and_back(tmp_path, make):
    suite, old, new = make(tmp_path / "old"), Roots(data=tmp_path / "old"), Roots(data=tmp_path / "new")
    seen = []
    count = export(suite, new.data, roots=old, advance=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (count, count)
    assert check(suite, new, deep=True).problems == []
    same(suite, suite.tasks[0], old, new)
    assert not list(new.data.glob(".*"))


def test_a_bundled_suite_in_noahs_layout_is_the_same_data(tmp_path):
    suite = dataclasses.replace(SUITES["demo"], tasks=(SUITES["demo"].task("digits"),))
    assert export(suite, tmp_path / "new") == 160 + 40 + 600
    folder = tmp_path / "new/digits"
    assert sorted(path.name for path in folder.iterdir()) == [
        "images",
        "test.txt",
        "train800.txt",
        "train800val200.txt",
        "val200.txt",
    ]
    old = TaskData(suite, suite.tasks[0], layouts.SMALL)
    new = TaskData(suite, suite.tasks[0], layouts.SMALL, Roots(data=tmp_path / "new"))
    assert new.fingerprint() == old.fingerprint()


def test_jpeg_has_the_quality_asked_for(tmp_path):
    layouts.random_image(tmp_path / "x.png", (64, 64))
    sizes = [len(ImageFormat(name="jpeg", quality=q).convert(tmp_path / "x.png")) for q in (20, 95)]
    assert sizes[0] < sizes[1] / 2
    assert ImageFormat().convert(tmp_path / "x.png") == (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.jpg").write_bytes(ImageFormat(name="jpeg").convert(tmp_path / "x.png"))
    assert ImageFormat(name="jpeg").convert(tmp_path / "x.jpg") == (tmp_path / "x.jpg").read_bytes()


def test_lossless_also_for_palettes_and_cmyk(tmp_path):
    layouts.random_image(tmp_path / "x.png")
    for mode, name in (("P", "p.gif"), ("CMYK", "c.tif"), ("L", "l.png"), ("1", "b.png")):
        with Image.open(tmp_path / "x.png") as image:
            image.convert(mode).save(tmp_path / name)
        (tmp_path / "out.png").write_bytes(ImageFormat().convert(tmp_path / name))
        np.testing.assert_array_equal(
            decoding.decode(tmp_path / "out.png", layouts.SMALL), decoding.decode(tmp_path / name, layouts.SMALL)
        )


@pytest.mark.parametrize("values", [{"name": "gif"}, {"quality": 50}, {"name": "jpeg", "quality": 0}])
def test_formats_that_make_no_sense(values):
    with pytest.raises(HarnessError, match="format"):
        ImageFormat(**values)


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path):
    suite, roots = make_vtab(tmp_path / "old"), Roots(data=tmp_path / "old")
    (tmp_path / "old/svhn/images/test/000005.jpg").write_bytes(b"")
    with pytest.raises(HarnessError, match="cannot be decoded"):
        export(suite, tmp_path / "new", roots=roots)
    assert list((tmp_path / "new").iterdir()) == []
    layouts.image(tmp_path / "old/svhn/images/test/000005.jpg", 1)
    export(suite, tmp_path / "new", roots=roots)
    before = (tmp_path / "new/svhn/test.txt").stat().st_mtime_ns
    with pytest.raises(HarnessError, match="nothing is overwritten"):
        export(suite, tmp_path / "new", roots=roots)
    assert (tmp_path / "new/svhn/test.txt").stat().st_mtime_ns == before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a tmpfs is not possible here ({error})")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # an error that is kept for the report maps a file there


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path, small_disk):
    suite = make_vtab(tmp_path / "old")
    for file in (tmp_path / "old/svhn/images").rglob("*.jpg"):
        layouts.random_image(file, (100, 100))
    with pytest.raises(PlaceError, match=f"{small_disk} cannot be written to .No space left.*free some.*--to") as found:
        export(suite, small_disk, roots=Roots(data=tmp_path / "old"))
    assert failures.kind_of(found.value).name == "disk_full"
    assert list(small_disk.iterdir()) == []


def test_the_cache_on_a_full_disk_is_named(tmp_path, small_disk, monkeypatch):
    suite, big = make_vtab(tmp_path / "old"), dataclasses.replace(layouts.SMALL, image_size=160)
    monkeypatch.setenv("SCTBENCH_CACHE", str(small_disk))
    with pytest.raises(PlaceError, match=f"the cache {small_disk} cannot be written to .No space left") as found:
        TaskData(suite, suite.tasks[0], big, Roots(data=tmp_path / "old")).open_test()
    assert failures.kind_of(found.value).name == "disk_full"


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    suite, to = make_vtab(tmp_path / "old"), tmp_path / "file/new"
    with pytest.raises(PlaceError, match=f"{to} cannot be written to .Not a directory.: see its permissions"):
        export(suite, to, roots=Roots(data=tmp_path / "old"))


def test_an_error_of_another_folder_is_not_blamed_on_the_one_written_to(tmp_path):
    with pytest.raises(PermissionError), writing(tmp_path / "to", "--to"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "from/image.png"))


def test_the_command(tmp_path):
    arguments = ["data", "export", "--suite", "demo", "--tasks", "digits", "--to", str(tmp_path / "new")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "800 images written" in result.output
    report = check(SUITES["demo"], Roots(data=tmp_path / "new"), ("digits",))
    assert report.problems == []
