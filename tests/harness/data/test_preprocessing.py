"""Preprocessing: names, pixels, statistics."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from harness.data import decoding
from harness.errors import HarnessError
from harness.schema.preprocessing import STATISTICS, Preprocessing


def make(size=16, statistics="half", **fields):
    mean, std = STATISTICS[statistics]
    return Preprocessing(image_size=size, mean=mean, std=std, **fields)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 81, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("fit", ["squash", "crop", "squash-crop"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_those_of_torchvisions_transforms(image, fit, interpolation):
    mode, size = InterpolationMode(interpolation), 28
    resize = {"squash": (size, size), "crop": 32, "squash-crop": (32, 32)}[fit]
    transform = transforms.Compose([transforms.Resize(resize, mode), transforms.CenterCrop(size)])
    expected = np.asarray(transform(Image.open(image)))
    np.testing.assert_array_equal(decoding.decode(image, make(size, fit=fit, interpolation=interpolation)), expected)


def test_normalisation_is_the_formula():
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    out = Preprocessing(image_size=1, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1)).normalise(pixels)
    expected = torch.tensor([-1.0, (128 / 255 - 0.4) / 0.2, 7.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("preprocessing", "name"),
    [
        (make(), "16px-squash-bicubic-half"),
        (make(224, "imagenet", fit="squash-crop"), "224px-squash-crop-bicubic-imagenet"),
        (make(56, "none", fit="crop", interpolation="bilinear"), "56px-crop-bilinear-none"),
        (
            Preprocessing(image_size=32, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)),
            "32px-squash-bicubic-0.1,0.2,0.3,1,1,1",
        ),
    ],
)
def test_names_and_back(preprocessing, name):
    assert preprocessing.id == name
    assert Preprocessing.from_id(name) == preprocessing


@pytest.mark.parametrize(
    "name", ["", "56px", "56px-stretch-bicubic-half", "xpx-squash-bicubic-half", "56px-crop-bicubic-x"]
)
def test_what_is_no_name_is_refused(name):
    with pytest.raises(HarnessError, match="does not name a preprocessing"):
        Preprocessing.from_id(name)


def test_misspelt_choices_are_answered():
    with pytest.raises(HarnessError, match="Did you mean 'squash'"):
        make(fit="sqush")


def test_a_truncated_image_is_named(image):
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(HarnessError, match=r"a\.png: cannot be decoded"):
        decoding.decode(image, make())
