"""Original archives in miniature become folders that the suite reads, with pixels and labels in their places."""

import json
import pickle
import shutil
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from harness.commands.main import app
from harness.data import archives
from harness.data.check import check
from harness.data.lists import Roots, read_list
from harness.data.prepare import NOTE_FILE, archive_rows, draw, prepare
from harness.data.splits import TaskData
from harness.errors import HarnessError
from harness.schema.preprocessing import Preprocessing
from suites import SUITES, packages
from tests import layouts

NUMBERS = np.arange(20)
LABELS = NUMBERS % 3


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """VTAB-1K with 3 classes and splits of 6, 3 and 6."""
    monkeypatch.setitem(SUITES, "vtab1k", layouts.VTAB)


def plain(size=32, part=0):
    """Twenty images, each of one grey value that tells its number, and the part of the archive with it."""
    return np.broadcast_to((NUMBERS * 10 + part).astype(np.uint8)[:, None, None, None], (20, size, size, 3))


def make_cifar(folder):
    for part, split in enumerate(("train", "test")):
        values = {b"data": plain(part=part).transpose(0, 3, 1, 2).reshape(20, -1), b"fine_labels": LABELS.tolist()}
        (folder / "cifar-100-python").mkdir(parents=True, exist_ok=True)
        (folder / "cifar-100-python" / split).write_bytes(pickle.dumps(values, protocol=4))


def make_svhn(folder):
    folder.mkdir(parents=True)
    for part, split in enumerate(("train", "test")):
        values = {"X": plain(part=part).transpose(1, 2, 3, 0), "y": np.where(LABELS == 0, 10, LABELS)[:, None]}
        savemat(folder / f"{split}_32x32.mat", values)


def norb(path, array, magic):
    shape = [*array.shape, *[1] * (3 - array.ndim)]
    path.write_bytes(struct.pack(f"<{2 + len(shape)}i", magic, array.ndim, *shape) + array.tobytes())


def make_norb(folder):
    folder.mkdir(parents=True)
    info = np.stack([NUMBERS, LABELS, LABELS * 2, NUMBERS], axis=1).astype("<i4")
    for part, name in enumerate(("training", "testing")):
        pair = np.stack([plain(96, part)[..., 0], np.zeros((20, 96, 96), np.uint8)], axis=1)
        norb(folder / f"smallnorb-5x-{name}-dat.mat", pair, 0x1E3D4C55)
        norb(folder / f"smallnorb-5x-{name}-info.mat", info, 0x1E3D4C54)


def grey(path, number, part=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (int(number) * 10 + part,) * 3).save(path, quality=100)


def make_dtd(folder):
    for part, split in enumerate(("train", "val", "test")):
        names = [f"{'abc'[n % 3]}/{n:02d}_{part}.jpg" for n in NUMBERS]
        for number, name in enumerate(names):
            grey(folder / "dtd/images" / name, number, part)
        (folder / "dtd/labels").mkdir(exist_ok=True)
        (folder / f"dtd/labels/{split}1.txt").write_text("\n".join(names))


def make_flowers(folder):
    for number in range(60):
        grey(folder / f"jpg/image_{number + 1:05d}.jpg", number % 20, number // 20)
    savemat(folder / "imagelabels.mat", {"labels": (np.arange(60) % 20 % 3 + 1)[None]})
    parts = {"trnid": NUMBERS + 1, "valid": NUMBERS + 21, "tstid": NUMBERS + 41}
    savemat(folder / "setid.mat", {key: numbers[None] for key, numbers in parts.items()})


def make_pets(folder):
    (folder / "annotations").mkdir(parents=True)
    for part, split in enumerate(("trainval", "test")):
        for number in NUMBERS:
            grey(folder / f"images/{split}_{number}.jpg", number, part)
        rows = [f"{split}_{n} {n % 3 + 1} 1 1" for n in NUMBERS]
        (folder / f"annotations/{split}.txt").write_text("\n".join(rows) + "\n")


def make_clevr(folder):
    for part, split in enumerate(("train", "val")):
        scenes = [{"image_filename": f"{n}.png", "objects": [{}] * (3 + n % 3)} for n in NUMBERS.tolist()]
        for number in NUMBERS:
            grey(folder / f"CLEVR_v1.0/images/{split}/{number}.png", number, part)
        (folder / "CLEVR_v1.0/scenes").mkdir(exist_ok=True)
        (folder / f"CLEVR_v1.0/scenes/CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))


def make_class_folders(folder):
    for number in NUMBERS:
        grey(folder / f"{'abc'[number % 3]} x/{number}.jpg", number)


CASES = [
    ("cifar100", "cifar", make_cifar),
    ("svhn", "svhn", make_svhn),
    ("smallnorb_azi", "smallnorb_azimuth", make_norb),
    ("smallnorb_ele", "smallnorb_ele", make_norb),
    ("dtd", "dtd", make_dtd),
    ("oxford_flowers102", "flowers102", make_flowers),
    ("oxford_iiit_pet", "pets", make_pets),
    ("clevr_count", "clevr_count", make_clevr),
    ("eurosat", "eurosat", make_class_folders),
]


@pytest.mark.parametrize(("task", "folder", "make"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_each_archive_becomes_a_folder_that_is_whole(tmp_path, task, folder, make):
    (tmp_path / "old").mkdir()
    make(tmp_path / "old" / folder)
    ((name, note),) = prepare(tmp_path / "old", tmp_path / "new")
    assert name == task and "own split, not VTAB's" in note
    assert "own split, not VTAB's" in (tmp_path / "new" / task / NOTE_FILE).read_text()
    assert check(layouts.VTAB, Roots(data=tmp_path / "new"), (task,), deep=True).errors == 0
    whole = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    made = TaskData(layouts.VTAB, layouts.VTAB.task(task), whole, Roots(data=tmp_path / "new")).fingerprint()
    assert made.not_official == [note]
    seen = set()
    for split in ("train800", "val200", "test"):
        for entry in read_list(tmp_path / "new" / task / f"{split}.txt", 3):
            with Image.open(tmp_path / "new" / task / entry.name) as image:
                number = round(np.asarray(image).mean() / 10)
            assert entry.label == number % 3
            seen.add((split == "test", number))
    assert len(seen) >= 9


def left_by_macos(folder):
    """Folders and files beside each image that hold no image."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        fork = b"\0\5\x16\7" + bytes(60)
        twin = folder / "__MACOSX" / path.relative_to(folder).with_name(f"._{path.name}")
        twin.parent.mkdir(parents=True, exist_ok=True)
        for place in (twin, path.with_name(f"._{path.name}")):
            place.write_bytes(fork)


def left_by_jupyter(folder):
    for place in [path for path in folder.rglob("*") if path.is_dir()]:
        images = [path for path in place.iterdir() if path.suffix in (".jpg", ".png")]
        (place / ".ipynb_checkpoints").mkdir()
        for path in images[:1]:
            shutil.copyfile(path, place / f".ipynb_checkpoints/{path.stem}-checkpoint{path.suffix}")


def left_by_a_server(folder):
    for place in [path for path in folder.rglob("*") if path.is_dir()]:
        grey(place / "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", 1)


@pytest.mark.parametrize("leave", [left_by_macos, left_by_jupyter, left_by_a_server])
@pytest.mark.parametrize(("task", "folder", "make"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_what_systems_leave_beside_the_images_is_none_of_them(tmp_path, task, folder, make, leave):
    make(tmp_path / "clean" / folder)
    shutil.copytree(tmp_path / "clean", tmp_path / "old")
    leave(tmp_path / "old" / folder)
    for name in ("clean", "old"):
        assert [name for name, _ in prepare(tmp_path / name, tmp_path / f"new_{name}")] == [task]
    files = sorted(path.relative_to(tmp_path / "new_old") for path in (tmp_path / "new_old").rglob("*.*"))
    assert len(files) == 15 + 5
    for file in files:
        assert (tmp_path / "new_old" / file).read_bytes() == (tmp_path / "new_clean" / file).read_bytes()


def test_two_folders_of_one_task_are_refused(tmp_path):
    make_cifar(tmp_path / "old/cifar")
    make_cifar(tmp_path / "old/cifar100")
    with pytest.raises(HarnessError, match=r"cifar100: several folders have its names.*old/cifar100, .*old/cifar$"):
        list(prepare(tmp_path / "old", tmp_path / "new"))


def test_draws_are_disjoint_seeded_and_have_the_sizes():
    task = layouts.VTAB.task("eurosat")
    pool = archives.Pool(np.arange(15) % 3, lambda index: [])
    parts = draw({"all": pool}, task)
    assert sorted(np.concatenate([index for _, index in parts.values()])) == list(range(15))
    assert {split: len(index) for split, (_, index) in parts.items()} == {"train": 6, "val": 3, "test": 6}
    again = draw({"all": pool}, task)
    assert all(np.array_equal(parts[split][1], again[split][1]) for split in parts)
    with pytest.raises(HarnessError, match="test needs 6 images, 5 are left"):
        draw({"all": archives.Pool(np.arange(14) % 3, lambda index: [])}, task)
    with pytest.raises(HarnessError, match="no test part"):
        draw({"train": pool}, task)


def test_dsprites_come_from_the_npz_or_the_package(tmp_path):
    latents = np.zeros((64, 6), np.int64)
    latents[:, 4] = np.arange(64) % 32
    images = np.zeros((64, 64, 64), np.uint8)
    images[np.arange(64), :, np.arange(64)] = 1
    np.savez(tmp_path / "dsprites_x.npz", imgs=images, latents_classes=latents)
    pool = archives.dsprites(4, 32, tmp_path)["all"]
    assert pool.labels[:4].tolist() == [0, 0, 1, 1] and pool.labels.max() == 15
    (image,) = pool.read(np.array([63]))
    assert np.flatnonzero(np.asarray(image)[0]).tolist() == [63]
    (tmp_path / "none").mkdir()
    bundled = archives.dsprites(4, 32, tmp_path / "none")["all"].labels
    assert np.array_equal(bundled, packages.dsprites_latents()[:, 4] * 16 // 32)


@pytest.mark.parametrize(("distance", "label"), [(7.9, 0), (8.0, 0), (8.01, 1), (9.7, 4), (10.0, 4), (12.0, 5)])
def test_clevr_distances_are_vtabs_classes(distance, label):
    things = [{"pixel_coords": [0, 0, 13.0]}, {"pixel_coords": [0, 0, distance]}]
    assert archives.clevr_distance(things) == label


def test_what_cannot_be_done_is_said(tmp_path):
    (tmp_path / "kitti").mkdir()
    with pytest.raises(HarnessError, match="kitti cannot be prepared: labels"):
        list(prepare(tmp_path, tmp_path / "new"))
    with pytest.raises(HarnessError, match="no folder for svhn"):
        list(prepare(tmp_path, tmp_path / "new", ("svhn", "kitti")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(HarnessError, match="no folder named like a task"):
        list(prepare(tmp_path / "empty", tmp_path / "new"))
    with pytest.raises(HarnessError, match=r"no train_32x32\.mat in it"):
        list(prepare(tmp_path / "empty", tmp_path / "new", ("svhn",)))
    make_class_folders(tmp_path / "few/eurosat")
    grey(tmp_path / "few/eurosat/d/1.jpg", 1)
    with pytest.raises(HarnessError, match="4 classes, where eurosat has 3"):
        list(prepare(tmp_path / "few", tmp_path / "new"))
    assert not list((tmp_path / "new").glob("*"))
    rows = {row["task"]: row for row in archive_rows()}
    assert len(rows) == 19 and rows["dmlab"]["needs"].startswith("not possible") and rows["svhn"]["test"] == "VTAB's"


def test_pickles_with_anything_but_arrays_are_refused(tmp_path):
    (tmp_path / "train").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="unexpected object"):
        archives.cifar100(tmp_path)


class Table:
    """What the reader uses of `datasets.Dataset`; the package itself brings another string type into pandas, so it is
    not among the development requirements."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: self.columns[name][key] for name in self.columns}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Puts what `datasets.load_from_disk` gives for a folder in the package's place."""

    def save(name, content):
        folder = tmp_path / "old" / name
        folder.mkdir(parents=True)
        (folder / "dataset_dict.json").write_text("{}")
        package = types.SimpleNamespace(DatasetDict=dict, load_from_disk={str(folder): content}.__getitem__)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return tmp_path / "old"

    return save


def numbered(column="img", label="fine_label", part=0):
    """Twenty grey images, one of them with an alpha channel, as the package decodes them."""
    images = [Image.new("RGBA" if n == 3 else "RGB", (32, 32), (int(n) * 10 + part,) * 3) for n in NUMBERS]
    return Table({column: images, label: LABELS.tolist()})


@pytest.mark.parametrize(
    ("images", "label", "parts"),
    [
        ("img", "fine_label", ("train", "test")),
        ("image", "label", ("train", "validation", "test")),
        ("image", "labels", ("train",)),
        ("image", "labels", ()),
    ],
)
def test_a_copy_of_the_package_datasets(tmp_path, saved, images, label, parts):
    tables = {part: numbered(images, label, number) for number, part in enumerate(parts)}
    content = tables or numbered(images, label)
    assert [name for name, _ in prepare(saved("cifar", content), tmp_path / "new")] == ["cifar100"]
    assert check(layouts.VTAB, Roots(data=tmp_path / "new"), ("cifar100",), deep=True).errors == 0
    for entry in read_list(tmp_path / "new/cifar100/test.txt", 3):
        with Image.open(tmp_path / "new/cifar100" / entry.name) as image:
            assert image.mode == "RGB" and round(np.asarray(image).mean() / 10) % 3 == entry.label


def test_a_copy_with_other_columns_or_labels_is_refused(tmp_path, saved):
    root = saved("cifar", {"train": numbered(label="coarse"), "test": numbered(label="coarse")})
    with pytest.raises(HarnessError, match=r"needs a column image or img, and label.*\['img', 'coarse'\]"):
        list(prepare(root, tmp_path / "new"))
    (root / "cifar").rename(root / "clevr_count")
    with pytest.raises(HarnessError, match="clevr_count: labels are computed from the original archive"):
        list(prepare(root, tmp_path / "new"))


def test_without_the_package_datasets_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "old/cifar").mkdir(parents=True)
    (tmp_path / "old/cifar/dataset_dict.json").write_text("{}")
    with pytest.raises(HarnessError, match="pip install datasets"):
        list(prepare(tmp_path / "old", tmp_path / "new"))


def test_a_damaged_archive_is_named(tmp_path):
    for task, file in (("svhn", "train_32x32.mat"), ("cifar100", "train"), ("clevr_count", "CLEVR_train_scenes.json")):
        folder = tmp_path / task / task
        folder.mkdir(parents=True)
        (folder / file).write_bytes(b"garbage" * 99)
        with pytest.raises(HarnessError, match=f"/{task}: {task} cannot be made from it"):
            list(prepare(tmp_path / task, tmp_path / "new"))


def test_the_command(tmp_path):
    make_svhn(tmp_path / "svhn")
    arguments = ["data", "prepare", "vtab1k", "--from", str(tmp_path), "--to", str(tmp_path / "new")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "own split, not VTAB's" in result.output
    assert "nothing is overwritten" in str(CliRunner().invoke(app, arguments).exception)
    assert "not possible" in CliRunner().invoke(app, ["data", "prepare", "--list"]).output
