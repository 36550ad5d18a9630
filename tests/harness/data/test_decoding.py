"""One decoding for all paths: deep grey, floats, transparency, frames, orientation, and what is refused."""

import dataclasses
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from harness.bench import released
from harness.data import arrays, decoding
from harness.data.export import ImageFormat
from harness.data.lists import Entries, Entry, ImageList, ListFile
from harness.data.looks import look
from harness.errors import DataError, HarnessError
from harness.schema.preprocessing import Preprocessing
from tests import layouts

GREY = np.add.outer(np.arange(16), 15 * np.arange(16)).astype(np.uint8)
"""Levels from 0 to 240, another mean in each row and column."""

DEEP = GREY.astype(np.uint16) * 257
"""The same in 16 bits."""

HIDDEN = GREY % 5 == 0
"""Pixels that are transparent."""

ON_WHITE = np.where(HIDDEN, np.uint8(255), GREY)

WHOLE = Preprocessing(image_size=16, mean=(0,) * 3, std=(1,) * 3)


def png(path, depth, colour, rows, key=None):
    """A PNG of any depth, which Pillow does not write; `key`: its key colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + (chunk(b"tRNS", key) if key else b"") + body)


def tiff_of_12_bits(path):
    bits = "".join(f"{value >> 4:012b}" for value in DEEP.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(data))]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def pgm(path, most):
    path.write_bytes(f"P5 16 16 {most}\n".encode() + (DEEP.astype(np.uint32) * most // 65535).astype(">u2").tobytes())


def alpha(*modes):
    opacity = Image.fromarray(np.where(HIDDEN, 0, 255).astype(np.uint8))
    images = [Image.fromarray(GREY).convert(mode) for mode in modes]
    images[0].putalpha(opacity)
    return images[0]


def palette(path):
    """A palette in which the transparent pixels have an entry of their own, which is green."""
    image = Image.fromarray(np.where(HIDDEN, np.uint8(255), GREY), "P")
    image.putpalette([level for i in range(255) for level in (i, i, i)] + [0, 255, 0])
    image.save(path, transparency=255)


SAME = {
    "16 bits.png": lambda path: Image.fromarray(DEEP).save(path),
    "16 bits.tif": lambda path: Image.fromarray(DEEP).save(path),
    "16 bits.jp2": lambda path: Image.fromarray(DEEP).save(path, irreversible=False),
    "big-endian.tif": lambda path: Image.fromarray(DEEP.astype(">u2")).save(path),
    "white is zero.tif": lambda path: Image.fromarray(65535 - DEEP).save(path, tiffinfo={262: 0}),
    "12 bits.tif": tiff_of_12_bits,
    "16 bits.pgm": lambda path: pgm(path, 65535),
    "12 bits.pgm": lambda path: pgm(path, 4095),
    "floats.tif": lambda path: Image.fromarray(GREY.astype(np.float32) / 255).save(path),
    "8 bits.png": lambda path: Image.fromarray(GREY).save(path),
    "palette.png": lambda path: Image.fromarray(GREY).convert("P").save(path),
    "opaque.png": lambda path: Image.fromarray(GREY).convert("RGBA").save(path),
    "stored as it is.png": lambda path: Image.fromarray(GREY).save(path, exif=turned()),
    "turned.tif": lambda path: Image.fromarray(np.rot90(GREY)).save(path, tiffinfo={0x0112: 6}),
    "first frame.gif": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=others()),
    "first frame.png": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=others()),
    "first page.tif": lambda path: Image.fromarray(GREY).save(path, save_all=True, append_images=others()),
}
CLEAR = {
    "alpha.png": lambda path: alpha("RGB").save(path),
    "grey with alpha.png": lambda path: alpha("L").save(path),
    "alpha.webp": lambda path: alpha("RGB").save(path, lossless=True, exact=True),
    "palette.png": palette,
    "palette.gif": palette,
    "key.png": lambda path: Image.fromarray(np.where(HIDDEN, np.uint8(5), GREY)).save(path, transparency=5),
    "key of 16 bits.png": lambda path: png(
        path, 16, 0, [row.astype(">u2").tobytes() for row in np.where(HIDDEN, 515, DEEP)], struct.pack(">H", 515)
    ),
}
FLOATS = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
REFUSED = {
    "32 bits.tif": (lambda path: Image.fromarray(DEEP.astype(np.int32)).save(path), "no agreed white"),
    "floats to 255.tif": (lambda path: Image.fromarray(FLOATS * 255).save(path), "floats from 0 to 255"),
    "below zero.tif": (lambda path: Image.fromarray(FLOATS - 0.5).save(path), "floats from -0.5 to 0.5"),
    "no number.tif": (lambda path: Image.fromarray(FLOATS * np.nan).save(path), "floats from nan"),
    "key of 4 bits.png": (lambda path: png(path, 4, 0, [bytes(8)] * 16, b"\0\5"), "a key colour at depth L;4"),
    "key of 48 bits.png": (lambda path: png(path, 16, 2, [bytes(96)] * 16, bytes(6)), "a key colour at depth RGB;16B"),
}


def turned():
    """EXIF that says: turn by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def others():
    return [Image.fromarray(255 - GREY), Image.new("L", (16, 16), 128)]


def of_all_paths(path):
    """The image's pixels as each path that reads images has them."""
    yield "runs", decoding.decode(path, WHOLE)
    exported = path.with_name("exported.png")
    exported.write_bytes(ImageFormat().convert(path))
    yield "export", decoding.decode(exported, WHOLE)
    exported.write_bytes(ImageFormat(name="jpeg", quality=100).convert(path))
    yield "export as JPEG", decoding.decode(exported, WHOLE)
    pixels, _ = released.Images(path.parent, Entries([Entry(path.name, 0, 1)]), WHOLE)[0]
    yield "bench", (pixels * 255).round().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        *((name, write, GREY) for name, write in SAME.items()),
        *((name, write, ON_WHITE) for name, write in CLEAR.items()),
    ],
)
def test_all_paths_decode_to_the_same_pixels(tmp_path, name, write, expected):
    if name.endswith("jp2") and not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    write(tmp_path / name)
    assert look(tmp_path / name).problem is look(tmp_path / name, deep=True).problem is None
    for path, pixels in of_all_paths(tmp_path / name):
        assert pixels.shape == (16, 16, 3)
        off = 3 if "JPEG" in path else 0
        np.testing.assert_allclose(pixels.astype(int), expected[..., None] + np.zeros(3, int), atol=off, err_msg=path)


@pytest.mark.parametrize(("name", "write", "reason"), [(name, *what) for name, what in REFUSED.items()])
def test_what_has_no_agreed_pixels_is_refused_by_name(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    assert reason in look(path, deep=True).problem
    if "key" not in name:
        assert reason in look(path).problem  # the plain check looks at it too
    for read in (
        lambda path: decoding.decode(path, WHOLE),
        ImageFormat().convert,
    ):
        with pytest.raises(HarnessError, match=f"{name}: cannot be decoded .*{reason}"):
            read(path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_usual_images_are_what_pillow_makes_of_them(tmp_path, mode):
    layouts.random_image(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        image.convert(mode).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        np.testing.assert_array_equal(np.asarray(decoding.read(tmp_path / "x.tif")), np.asarray(image.convert("RGB")))


def test_other_rules_or_libraries_make_another_array(tmp_path, monkeypatch):
    layouts.random_image(tmp_path / "x.png")
    images = ImageList(ListFile(tmp_path / "list", tmp_path), Entries([Entry("x.png", 0, 1)]))
    array = arrays.ImageArray(label="x", images=images, preprocessing=WHOLE)

    def name():
        decoding.versions_digest.cache_clear()
        return array.path().name

    before = name()
    assert name() == before
    monkeypatch.setattr(decoding, "VERSION", decoding.VERSION + 1)
    newer = name()
    monkeypatch.setattr(decoding.PIL, "__version__", "1.1.7")
    older = name()
    monkeypatch.setattr(decoding.features, "version", lambda library: "0")
    assert len({before, newer, older, name()}) == 4
    monkeypatch.undo()
    assert name() == before
    assert dataclasses.replace(WHOLE, std=(0.5,) * 3).pixels_id == WHOLE.pixels_id


@pytest.mark.parametrize("read", [decoding.read, ImageFormat().convert], ids=["runs", "export"])
def test_a_pipe_is_named_and_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"^[^(]*image\.png: a pipe, not a file"):
        read(tmp_path / "image.png")
