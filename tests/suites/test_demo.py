"""The demo suites: real images, seeded and disjoint splits, VTAB's own labels for dSprites."""

from unittest import mock

import numpy as np
import pytest
from PIL import Image

from harness.data.check import check
from harness.data.lists import Roots
from suites import SUITES, packages
from suites.base import VTAB_LISTS, SuiteError
from suites.demo import REGIONS, crop_box, task_rng

DEMO = SUITES["demo"]


@pytest.fixture(scope="module")
def dsprites():
    """`dsprites_images` with one reading for all that this file asks for: the archive takes seconds to unpack."""
    tasks = [task for task in DEMO.tasks if task.name.startswith("dsprites")]
    drawn = [task_rng(task.name).choice(737_280, sum(task.sizes.values()), replace=False) for task in tasks]
    wanted = np.unique(np.concatenate([*drawn, [0, 737_279], moving_along_x()]))[::-1]
    images = dict(zip(wanted.tolist(), packages.dsprites_images(wanted), strict=True))
    with mock.patch.object(packages, "dsprites_images", lambda index: np.stack([images[i] for i in index.tolist()])):
        yield


def moving_along_x():
    """Indices of the 32 dSprites that differ in nothing but the x position, from left to right."""
    return np.flatnonzero((packages.dsprites_latents()[:, [1, 2, 3, 5]] == [0, 5, 0, 16]).all(axis=1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, dsprites):
    root = tmp_path_factory.mktemp("demo")
    for task in DEMO.tasks:
        task.build(root / task.name)
    return {task.name: root / task.name for task in DEMO.tasks}


def lines(folder, split):
    return [line.split() for line in (folder / VTAB_LISTS[split]).read_text().splitlines()]


@pytest.mark.parametrize("task", DEMO.tasks, ids=lambda t: t.name)
def test_splits_have_the_stated_sizes_and_classes(folders, task):
    for split, size in task.sizes.items():
        rows = lines(folders[task.name], split)
        assert len(rows) == size
        assert {int(label) for _, label in rows} <= set(range(task.num_classes))
    assert {int(label) for _, label in lines(folders[task.name], "trainval")} == set(range(task.num_classes))
    folder = folders[task.name]
    assert lines(folder, "trainval") == lines(folder, "train") + lines(folder, "val")


@pytest.mark.parametrize("task", [t for t in DEMO.tasks if t.name != "photo_crops"], ids=lambda t: t.name)
def test_no_image_stands_in_two_splits(folders, task):
    folder, owner = folders[task.name], {}
    for split in ("train", "val", "test"):
        for name, _ in lines(folder, split):
            pixels = Image.open(folder / name).tobytes()
            assert owner.setdefault(pixels, split) == split


def test_crops_of_different_splits_do_not_overlap():
    rng = np.random.default_rng(0)
    for image in packages.photos().values():
        boxes = {s: [crop_box(image.size, s, rng) for _ in range(200)] for s in REGIONS}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            for x0, y0, x1, y1 in boxes[a]:
                for u0, v0, u1, v1 in boxes[b][:40]:
                    assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
        for split_boxes in boxes.values():
            assert all(0 <= b[0] < b[2] <= image.width and 0 <= b[1] < b[3] <= image.height for b in split_boxes)


def test_building_again_gives_the_same_bytes(folders, tmp_path):
    for name in ("photo_crops", "digits"):
        task = next(t for t in DEMO.tasks if t.name == name)
        task.build(tmp_path / name)
        old = sorted(p for p in folders[name].rglob("*") if p.is_file())
        new = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        assert [p.read_bytes() for p in old] == [p.read_bytes() for p in new]


def test_dsprites_are_vtabs_own_tasks(folders):
    """Location is the x position in 16 bins: the pixels agree with the labels."""
    latents = packages.dsprites_latents()
    assert latents.shape == (737_280, 6)
    assert latents.max(axis=0).tolist() == [0, 2, 5, 39, 31, 31]
    # The x position moves the image's centre of mass from left to right.
    images = packages.dsprites_images(np.concatenate([[737_279, 0], moving_along_x()]))
    assert images.shape == (2 + 32, 64, 64)
    assert set(np.unique(images)) == {0, 255}
    columns = [np.nonzero(image)[1].mean() for image in images[2:]]
    assert np.all(np.diff(columns) > 0)
    rows = lines(folders["dsprites_loc"], "test")
    image = np.asarray(Image.open(folders["dsprites_loc"] / rows[0][0]))
    nearest = int(np.argmin(np.abs(np.array(columns) - np.nonzero(image)[1].mean())))
    assert abs(nearest // 2 - int(rows[0][1])) <= 1


def test_official_duplicates_of_dsprites_are_warnings(folders):
    """A square looks the same every quarter turn."""
    result = check(DEMO, Roots(data=folders["dsprites_ori"].parent), ("dsprites_ori",))
    assert result.errors == 0


def test_full_size_is_vtabs():
    for task in SUITES["demo-full"].tasks:
        if task.name.startswith("dsprites"):
            assert task.sizes == {"train": 800, "val": 200, "test": 73_728}
            assert task.num_classes == 16


def test_a_missing_package_is_answered_with_the_pip_command():
    with pytest.raises(SuiteError, match=r'no-such-data is not installed. Run: pip install "sctbench\[demo\]"'):
        packages.package_file("no-such-data", "x.npz")
