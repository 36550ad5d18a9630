"""Methods that try to see held-out data, each in a way of its own: the run fails, or there is nothing to be found."""

import contextlib
import dataclasses
import gc
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import arrays
from harness.data import splits as data
from harness.data.arrays import ImageArray
from harness.data.held_out_guard import HeldOutGuard
from harness.data.lists import Entries, ImageList, Roots
from harness.data.splits import Split, TaskData
from harness.errors import HarnessError
from harness.plans.experiment import select
from harness.plans.plan import expand
from harness.schema import protocol
from harness.training.run import RunContext, attempt, run
from methods import registry
from methods.base import Attachment
from methods.linear import Linear
from suites import SUITES
from suites.base import Target
from tests import layouts

CPU = torch.device("cpu")
TARGET = Target(name="shifted", folders=("shifted",), list_file="test.txt")
TASK = dataclasses.replace(layouts.TOY, targets=(TARGET,))
TOYS = dataclasses.replace(layouts.TOYS, tasks=(TASK,))
BACKBONE = {"backbone": "test_vit", "weights": "random", "image_size": 32}


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """A toy task with a further test set, as files."""
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SUITES, "toys", TOYS)
    layouts.toy(tmp_path / "root", test=8)
    layouts.noise(tmp_path / "root/shifted", "test.txt", "shifted", 4, np.random.default_rng(1))
    return Roots(data=tmp_path / "root")


def spec_of(method="cheat", protocol="fixed"):
    (spec,) = expand(select({"suite": "toys", "methods": [method], "protocol": protocol, **BACKBONE}))
    return spec


@pytest.fixture
def cheat(roots, monkeypatch):
    """Does a run whose method calls `look(context)` in `attach`, and `later()` after each step if `look` returns it."""

    def _cheat(look, protocol="fixed"):
        class Cheat(Linear):
            name = "cheat"
            title = "Cheat"

            def attach(self, backbone, context):
                later = look(context)
                return Attachment(after_step=(lambda step: later()) if later else None)

        monkeypatch.setitem(registry._external, "cheat", Cheat)
        return run(RunContext(spec=spec_of(protocol=protocol), device=CPU, roots=roots)).record

    return _cheat


def outer_frames():
    frame = sys._getframe()
    while frame := frame.f_back:
        yield frame


def from_frames(kind):
    """The nearest object of a kind among the local variables of whoever called, and in what these hold."""
    held = (local for frame in outer_frames() for local in list(frame.f_locals.values()))
    parts = (part for local in held for part in (local, getattr(local, "splits", None), getattr(local, "roots", None)))
    return next(part for part in parts if isinstance(part, kind))


def from_memory(kind):
    """Of this test: others in this process may have left some too."""
    return next(thing for thing in gc.get_objects() if type(thing) is kind and thing.suite is TOYS)


def found_in(context):
    """Everything that hangs on the context, short of modules and what functions import."""
    seen, waiting = {}, [context]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, types.ModuleType | type):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, types.FunctionType):
            waiting += [cell.cell_contents for cell in thing.__closure__ or ()]
        else:
            waiting += gc.get_referents(thing)
    return list(seen.values())


def test_an_honest_method_runs_and_the_record_counts_one_look(cheat):
    record = cheat(lambda context: None)
    assert (record.status, record.test_looks) == ("complete", 1)
    assert set(record.metrics) == {"test", "shifted"}


def test_nothing_that_hangs_on_the_context_leads_to_other_data(cheat):
    found = []
    cheat(lambda context: found.extend(found_in(context)))
    assert sum(isinstance(thing, Split) for thing in found) == 1
    assert [len(thing) for thing in found if isinstance(thing, Split)] == [9]  # train and val: what is trained on
    assert not [thing for thing in found if isinstance(thing, TaskData | HeldOutGuard | Roots | Path)]


def empty_array():
    """One whose list names no image, so that none is looked at."""
    images = ImageList(from_frames(TaskData)._list_files["test"], Entries())
    return ImageArray(label="toys-toy-test", images=images, preprocessing=from_frames(TaskData).preprocessing)


CHEATS = {
    "opens the test split of an object found in memory": lambda: from_memory(TaskData).open_test(),
    "opens the test split through its callers' variables": lambda: from_frames(TaskData).open_test(),
    "makes a view of the data of its own": lambda: TaskData(
        TOYS, TASK, from_frames(TaskData).preprocessing, from_frames(Roots)
    ).open_test(),
    "reads the list": lambda: from_frames(TaskData)._list_files["test"].path.read_text(),
    "asks for the list's entries": lambda: from_frames(TaskData).entries("test"),
    "reads the list of a further test set": lambda: (from_frames(Roots).data / "shifted" / "test.txt").read_text(),
    "decodes an image": lambda: Image.open(from_frames(Roots).data / "toy" / "images" / "test" / "0.png"),
    "loads the split past the counter": lambda: from_frames(TaskData)._load("test"),
    "loads the split past the object": lambda: data._load_split(
        next(path for path in arrays.folder().iterdir() if path.name.startswith("toys-toy-test")), empty_array()
    ),
}


@pytest.mark.parametrize("look", CHEATS.values(), ids=CHEATS)
def test_a_method_that_looks_while_it_attaches_fails(cheat, look):
    with pytest.raises(HarnessError, match="stay closed until training has ended"):
        cheat(lambda context: look() and None)


@pytest.mark.parametrize("look", CHEATS.values(), ids=CHEATS)
def test_a_method_that_looks_while_it_trains_and_hides_it_fails(cheat, look):
    def look_and_say_nothing():
        with contextlib.suppress(HarnessError):
            look()

    with pytest.raises(HarnessError, match="the method reached for held-out data while it attached or trained"):
        cheat(lambda context: look_and_say_nothing)


def test_a_reference_kept_from_attach_is_of_no_use_in_training(cheat):
    def keep(context):
        kept = from_frames(TaskData)
        return kept.open_test

    with pytest.raises(HarnessError, match="stay closed"):
        cheat(keep)


def test_the_array_of_an_earlier_run_cannot_be_mapped(cheat):
    cheat(lambda context: None)
    (path,) = arrays.folder().glob("toys-toy-test-*.npy")
    with pytest.raises(HarnessError, match="stay closed"):
        cheat(lambda context: np.load(path, mmap_mode="r") and None)


def test_the_digests_of_held_out_images_cannot_be_read(cheat):
    cheat(lambda context: None)
    (path,) = arrays.folder().glob("toys-toy-shifted-*.npy")
    TaskData(TOYS, TASK, layouts.HALF, Roots(data=path.parents[2] / "root")).fingerprint()
    with pytest.raises(HarnessError, match="stay closed"):
        cheat(lambda context: path.with_suffix(".sha256").read_bytes() and None)


@pytest.mark.parametrize("how", ["absolute", "upwards", "link"])
def test_a_held_out_image_outside_of_the_tasks_folder_stays_shut(cheat, roots, tmp_path, how):
    list_file, own = roots.data / "toy/test.txt", roots.data / "toy/images/test/0.png"
    away = tmp_path / "away.png"
    own.rename(away)
    if how == "link":
        own.symlink_to(away)
    else:
        name = str(away) if how == "absolute" else "../../away.png"
        list_file.write_text(list_file.read_text().replace("images/test/0.png", name))
    assert cheat(lambda context: None).status == "complete"
    with pytest.raises(HarnessError, match="stay closed"):
        cheat(lambda context: Image.open(away) and None)


def splits_in_memory():
    return [thing for thing in gc.get_objects() if type(thing) is Split]


def test_an_earlier_run_leaves_no_held_out_split_in_memory(cheat):
    gc.collect()
    others = {id(split): split for split in splits_in_memory()}  # of other tests in this process
    cheat(lambda context: None)
    gc.collect()
    sizes = set()
    cheat(lambda context: sizes.update(len(split) for split in splits_in_memory() if id(split) not in others))
    assert sizes == {9}  # train and val: what is trained on


def test_a_validation_run_neither_opens_test_nor_shows_val(cheat):
    record = cheat(lambda context: None, "validation")
    assert (set(record.metrics), record.test_looks) == ({"val"}, 0)
    for look in (lambda: from_frames(TaskData).train("val"), lambda: from_frames(TaskData).train("trainval")):
        with pytest.raises(HarnessError, match="stay closed"):
            cheat(lambda context, look=look: look() and None, "validation")


def test_a_protocol_that_may_not_look_is_refused(roots):
    view = TaskData(TOYS, TASK, layouts.HALF, roots, looks=protocol.get("validation").looks(epochs=5))
    with pytest.raises(HarnessError, match="is not opened under this protocol"):
        view.open_test()
    assert view.test_looks == 0


def test_a_second_opening_is_refused_also_after_training(roots):
    view = TaskData(TOYS, TASK, layouts.HALF, roots)
    view.open_test()
    with pytest.raises(HarnessError, match="already opened in this run"):
        view.open_test()


@pytest.mark.parametrize("split", ["test", "shifted", "tset"])
def test_training_splits_are_asked_for_by_name_and_test_is_none(roots, split):
    with pytest.raises(HarnessError, match="is opened only by"):
        TaskData(TOYS, TASK, layouts.HALF, roots).train(split)


def test_reaching_for_test_is_a_failed_record_with_the_reason(cheat, roots):
    with pytest.raises(HarnessError):
        cheat(lambda context: from_frames(TaskData).open_test() and None)
    record = attempt(RunContext(spec=spec_of(), device=CPU, roots=roots)).record
    assert record.status == "failed"
    assert "stay closed" in record.reason


def test_images_that_are_trained_on_stay_free(cheat):
    def open_own(context):
        folder = from_frames(Roots).data / "toy" / "images"
        for split in ("train", "val"):
            Image.open(folder / split / "0.png").load()

    assert cheat(open_own).status == "complete"
