"""List files, decoding, cached arrays, fingerprints and the one look at the test split."""

import numpy as np
import pytest
import torch
from PIL import Image

from harness import data
from harness.data import Preprocessing, TaskData
from harness.errors import HarnessError
from suites.base import SPLIT_FILES, Suite, Task

HALF = Preprocessing(image_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A task of 3 classes in the layout of `suites.base`, with random pictures of odd sizes."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    data._load_split.cache_clear()
    task, rng = tmp_path / "root" / "toy", np.random.default_rng(0)
    lines = {}
    for split, size in (("train", 6), ("val", 3), ("test", 9)):
        (task / "images" / split).mkdir(parents=True)
        lines[split] = [f"images/{split}/{i}.png {i % 3}" for i in range(size)]
        for i in range(size):
            pixels = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
            Image.fromarray(pixels).save(task / "images" / split / f"{i}.png")
    lines["trainval"] = lines["train"] + lines["val"]
    for split, name in SPLIT_FILES.items():
        (task / name).write_text("\n".join(lines[split]) + "\n")
    return task


def toy(folder, preprocessing=HALF):
    task = Task(name="toy", group="natural", num_classes=3, sizes={"train": 6, "val": 3, "test": 9})
    suite = Suite(name="toys", title="Toys", about="", tasks=(task,))
    return TaskData(suite, task, preprocessing, folder.parent)


def test_arrays_hold_exactly_the_decoded_pictures(folder):
    split = toy(folder).train("trainval")
    assert split.images.shape == (9, 16, 16, 3)
    assert split.images.dtype == torch.uint8
    assert split.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    with Image.open(folder / "images/val/2.png") as picture:
        direct = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(split.images[8].numpy(), direct)


def test_normalisation_is_the_formula():
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    out = Preprocessing(image_size=1, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1)).normalise(pixels)
    expected = torch.tensor([-1.0, (128 / 255 - 0.4) / 0.2, 7.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(out, expected)


def test_preprocessing_is_named():
    assert HALF.id == "16px-squash-bicubic-half"
    odd = Preprocessing(image_size=32, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert odd.id == "32px-squash-bicubic-0.1,0.2,0.3,1,1,1"


def test_second_reading_comes_from_the_cache(folder, monkeypatch):
    first = toy(folder).train("train").images.clone()
    data._load_split.cache_clear()
    monkeypatch.setattr(data, "_decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(toy(folder).train("train").images, first)


def test_fingerprint_sees_lists_and_pixels(folder):
    before = toy(folder).fingerprint
    assert before.sizes == {"train": 6, "val": 3, "trainval": 9, "test": 9}
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "images/test/0.png")
    pixels = toy(folder).fingerprint
    assert (pixels.lists, pixels.files) != (before.lists, before.files)
    assert pixels.lists == before.lists
    (folder / "val200.txt").write_text("images/val/0.png 1\n")
    assert toy(folder).fingerprint.lists != before.lists


def test_the_test_split_opens_once(folder):
    task = toy(folder)
    assert task.test_looks == 0
    assert len(task.open_test()) == 9
    assert task.test_looks == 1
    with pytest.raises(HarnessError, match="opened already"):
        task.open_test()
    with pytest.raises(HarnessError, match="open_test alone"):
        task.train("test")


@pytest.mark.parametrize("line", ["images/train/0.png", "images/train/0.png x", "images/train/0.png 3", "0.png -1"])
def test_a_bad_line_is_named_with_file_and_number(folder, line):
    (folder / "train800.txt").write_text(f"images/train/0.png 0\n\n{line}\n")
    with pytest.raises(HarnessError, match=r"train800\.txt:3: .* label from 0 to 2"):
        toy(folder)


def test_paths_with_spaces_and_windows_line_ends_are_read(folder):
    (folder / "images/train/0.png").rename(folder / "images/train/a b.png")
    (folder / "train800.txt").write_bytes(b"images/train/a b.png 2\r\n\r\n")
    assert data.read_list(folder / "train800.txt", 3) == (["images/train/a b.png"], [2])


def test_missing_and_broken_pictures_are_named(folder):
    (folder / "images/test/0.png").unlink()
    with pytest.raises(HarnessError, match=r"test/0\.png: listed, but there is no such file"):
        toy(folder)
    (folder / "images/test/0.png").write_bytes(b"not a picture")
    with pytest.raises(HarnessError, match=r"test/0\.png: cannot be decoded"):
        toy(folder).open_test()


def test_a_suite_without_data_asks_for_its_folder(folder):
    task = Task(name="toy", group="natural", num_classes=3, sizes={})
    with pytest.raises(HarnessError, match="--root"):
        TaskData(Suite(name="toys", title="", about="", tasks=(task,)), task, HALF)
