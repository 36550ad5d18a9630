"""Copies that the package `datasets` saved. It brings another string type into pandas, so it is not among the
development requirements: without it what stands for the package is read, and the package itself is not tested."""

import io
import sys
import types

import pytest
from PIL import Image as Pillow

from suites.base import SuiteError
from suites.own import read_suite

NAMES = ("dog", "cat")


def jpeg(number):
    out = io.BytesIO()
    Pillow.new("L", (8, 8), number).save(out, "JPEG")
    return out.getvalue()


class Image:
    """Stands for `datasets.Image`."""

    def __init__(self, decode=True):
        self.decode = decode


class Table:
    """What the reader uses of `datasets.Dataset`."""

    def __init__(self, count, label=None, **features):
        self.labels = [number % 2 for number in range(count)]
        kind = type("ClassLabel", (), {"names": list(NAMES)}) if label is None else type(label, (), {})
        self.features = {"image": Image(), "label": kind()} | features

    def __getitem__(self, column):
        assert column == "label"
        return self.labels

    def select_columns(self, columns):
        assert columns == ["image"]
        return self

    def cast_column(self, column, kind):
        assert (column, kind.decode) == ("image", False)
        return [{"image": {"bytes": jpeg(number), "path": None}} for number in range(len(self.labels))]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Puts what `datasets.load_from_disk` gives for a folder in the package's place."""

    def save(content):
        folder = tmp_path / "copy"
        folder.mkdir(exist_ok=True)
        (folder / "state.json").write_text("{}")
        load = {str(folder): content}.__getitem__
        package = types.SimpleNamespace(DatasetDict=dict, Image=Image, load_from_disk=load)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return folder

    return save


def built(suite, folder):
    """The bytes of each image, by its name, of all lists that were written."""
    (task,) = suite.tasks
    task.build(folder)
    names = [line.split()[0] for file in folder.glob("*.txt") for line in file.open() if "_" not in line]
    return {name: (folder / name).read_bytes() for name in names if name.startswith("images/")}


@pytest.mark.parametrize("split", ["validation", "val"])
def test_a_copy_becomes_files_with_its_own_bytes_and_labels(saved, tmp_path, split):
    suite = read_suite(saved({"train": Table(10), split: Table(4), "test": Table(6)}))
    assert suite.tasks[0].class_names == NAMES  # the copy's own order
    assert suite.tasks[0].sizes == {"train": 10, "val": 4, "test": 6}
    assert suite.images is None
    found = built(suite, tmp_path / "lists")
    assert len(found) == 20 and found["images/test/000005"] == jpeg(5)


def test_a_copy_without_splits_is_drawn_from(saved):
    assert read_suite(saved(Table(20))).tasks[0].sizes == {"train": 12, "val": 4, "test": 4}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (Table(4, label="Sequence"), "column 'label' holds several labels; .*multi-label data are not supported"),
        (Table(4, image=object()), "no column of images; it has image, label"),
        ({"test": Table(4), "extra": Table(4)}, "test, extra, but no split train"),
    ],
)
def test_other_copies_are_answered(saved, content, answer):
    with pytest.raises(SuiteError, match=answer):
        read_suite(saved(content))


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(SuiteError, match=r'pip install "sctbench\[datasets\]"'):
        read_suite(tmp_path)


def test_a_copy_that_the_package_itself_saved(tmp_path):
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    columns = {"image": [{"bytes": jpeg(n), "path": None} for n in range(10)], "label": [n % 2 for n in range(10)]}
    types = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()}
    arrow = datasets.table.InMemoryTable(pa.table({name: pa.array(columns[name], types[name]) for name in columns}))
    # with a fingerprint, for the package fails to hash a table in some versions of what it needs
    table = datasets.Dataset(arrow, info=datasets.DatasetInfo(features=features), fingerprint="ab")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "copy")
    suite = read_suite(tmp_path / "copy")
    assert suite.tasks[0].class_names == NAMES
    assert suite.tasks[0].sizes == {"train": 8, "val": 2, "test": 10}
    assert built(suite, tmp_path / "lists")["images/test/000007"] == jpeg(7)
