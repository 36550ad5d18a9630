"""Before any run all lists and images are looked for: one error names all causes, and what was probably meant."""

import dataclasses
import unicodedata

import pytest

from harness.data.lists import Roots
from harness.data.located import refuse_unusable
from harness.errors import DataError
from harness.plans import plan
from tests import layouts, tiny
from tests.command import sctbench

SUITE = """
name: located
folders: [sets]
recipe: {epochs: 1, batch_size: 6, precision: float32}
tasks:
  - {name: one, group: all, num_classes: 3, folders: [one, eins]}
  - {name: two, group: all, num_classes: 3}
"""
TASKS = ("one", "two")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "located.yaml").write_text(SUITE)
    for task in TASKS:
        layouts.vtab(tmp_path / "data/sets", task)
    return tmp_path / "data"


def run(data, *flags, ok=False, command="run", root=None):
    options = ["--methods", "linear,bitfit", "--backbone", "test_vit", "--weights", "random", "--image-size", 32]
    place = data.parent
    roots = ["--root", root or data]
    return sctbench(command, "--suite", "located.yaml", *roots, *options, *flags, cwd=place, ok=ok)


def refused(data, *flags, **options):
    """The lines behind the error's first; nothing was written."""
    output = run(data, *flags, **options)
    assert not list(data.parent.glob("results/runs/**/*.json"))
    assert "failed" not in output
    return output[output.index("the data of") :].splitlines()


def located(suite, roots, tasks=()):
    """Look at the data of all runs of a suite."""
    selection = dataclasses.replace(tiny.selection(), suite=suite, tasks=tasks, protocol="fixed", recipe={})
    refuse_unusable(selection.suite, plan.expand(selection), roots)


def rewrite(file, change):
    file.write_text("".join(f"{change(line)}\n" for line in file.read_text().splitlines()))


@pytest.mark.parametrize("where", ["up", "down"])
def test_a_root_one_level_off_is_one_error_that_names_the_right_one(data, where):
    root = data.parent if where == "up" else data / "sets/one"
    right = data if where == "up" else data / "sets"
    first, *lines = refused(data, "--seeds", "3", root=root)
    assert first == "the data of 2 of 2 tasks cannot be used; nothing was started"
    assert [line.split(":")[0] for line in lines[:2]] == [
        f"  no folder for the images of {task!r} below {root}" for task in TASKS
    ]
    assert lines[2:] == [f"    did you mean --root {right}? 2 of these 2 are there"]


def test_all_causes_of_all_tasks_stand_in_one_error(data):
    (data / "sets/one/test.txt").unlink()
    rewrite(data / "sets/two/test.txt", lambda line: line.replace(" 2", " 7"))
    (data / "sets/two/images/train/000001.png").unlink()
    lines = refused(data)
    one, two = data / "sets/one", data / "sets/two"
    assert lines == [
        "the data of 2 of 2 tasks cannot be used; nothing was started",
        f"  {one}/test.txt: no such list file",
        f"    {one} holds train800.txt, train800val200.txt, val200.txt",
        f"  {two}/train800.txt:2: {two}/images/train/000001.png: listed, but there is no such file",
        f"  {two}/train800val200.txt:2: {two}/images/train/000001.png: listed, but there is no such file",
        f"  {two}/test.txt:3: 'images/test/000002.png 7' is not `file label` with a label from 0 to 2",
        f"  {two}/test.txt:6: 'images/test/000005.png 7' is not `file label` with a label from 0 to 2",
    ]


@pytest.mark.parametrize("protocol", ["fixed", "tuned", "validation"])
def test_a_missing_test_image_shows_before_the_first_trial(data, protocol):
    (data / "sets/two/images/test/000003.png").unlink()
    lines = refused(data, "--protocol", protocol)
    assert lines[0] == "the data of 1 of 2 tasks cannot be used; nothing was started"
    assert "test.txt:4: " in lines[1] and lines[-1] == "`--tasks one` leaves them out"
    if protocol == "fixed":
        run(data, "--tasks", "one", ok=True)


def renamed(folder, change):
    for path in sorted(folder.rglob("*.png"), reverse=True):
        path.rename(path.with_name(change(path.name)))


def rename_test(data, change):
    renamed(data / "sets/two/images/test", change)


def decompose(data):
    """Names in the list as Linux writes them, files as macOS does."""
    for place, form in ((data / "sets/two/images/test", "NFD"), (None, "NFC")):
        name = unicodedata.normalize(form, "äé")
        if place:
            renamed(place, lambda old, name=name: name + old)
        else:
            rewrite(data / "sets/two/test.txt", lambda line, name=name: line.replace("test/", f"test/{name}"))


def prefix(data, text):
    rewrite(data / "sets/two/test.txt", lambda line: text + line)


MEANT = {
    "capitals": (lambda data: rename_test(data, lambda name: name.replace("png", "PNG")), "000000.PNG? Only capitals"),
    "ending": (lambda data: rename_test(data, lambda name: name.replace("png", "jpg")), "000000.jpg? Only the ending"),
    "accents": (decompose, "000000.png? Accents are written in two ways, NFC and NFD"),
    "repeated": (lambda data: prefix(data, "two/"), "000000.png? The list's names begin with two/, which is too much"),
    "absolute": (lambda data: prefix(data, "/old/place/two/"), "The list's names begin with /old/place/two/, which"),
    "below": (
        lambda data: rewrite(data / "sets/two/test.txt", lambda line: line.removeprefix("images/")),
        "000000.png? The list's names are relative to {data}/sets/two/images, and not to {data}/sets/two",
    ),
    "folder": (
        lambda data: (data / "sets/two/images/test").rename(data / "sets/two/images/Test"),
        "Test/000000.png? Only capitals",
    ),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_was_probably_meant_is_said_once(data, case):
    damage, hint = MEANT[case]
    damage(data)
    first, problem, more, told, out = refused(data, "--seeds", "2")
    assert first.startswith("the data of 1 of 2 tasks")
    assert f"{data}/sets/two/test.txt:1: " in problem and problem.endswith("there is no such file")
    assert more == "    ... and 5 more like it"
    assert "did you mean " in told and hint.format(data=data) in told
    assert out == "`--tasks one` leaves them out"
    checked = sctbench("data", "check", "--suite", "located.yaml", "--root", data, cwd=data.parent, ok=False)
    assert checked.count(told.strip()) == 1 and "... and 3 more like these" in checked


def test_labels_from_1_are_said_to_be_that_and_nothing_else(data):
    for file in (data / "sets/two").glob("*.txt"):
        rewrite(file, lambda line: f"{line[:-1]}{int(line[-1]) + 1}")
    lines = refused(data)
    assert lines[-2] == "    its labels run from 1 to 3: subtract 1 from each"
    assert sum("is not `file label`" in line for line in lines) == 3 and len(lines) == 7
    checked = sctbench("data", "check", "--suite", "located.yaml", "--root", data, cwd=data.parent, ok=False)
    assert checked.count("subtract 1 from each") == 1


def test_what_is_no_file_is_named(data):
    test = data / "sets/two/images/test"
    for number in range(3):
        (test / f"00000{number}.png").unlink()
    (test / "000000.png").mkdir()
    (test / "000001.png").symlink_to("nowhere")
    (test / "000002.png").symlink_to("000002.png")
    lines = refused(data)
    assert lines[1].endswith("000000.png: not a file, or a link to nothing")
    assert lines[2] == "    ... and 2 more like it"


def test_lists_that_contradict_each_other_are_found_before_any_run(data):
    with (data / "sets/two/val200.txt").open("a") as file:
        file.write("images/test/000000.png 0\n")
    lines = refused(data)
    assert "val200.txt" in lines[1] and lines[0].startswith("the data of 1 of 2 tasks")


def test_only_what_is_to_be_done_is_looked_at(data):
    run(data, "--tasks", "two", ok=True)
    (data / "sets/two/images/test/000003.png").unlink()
    assert "2 complete already" in run(data, "--tasks", "two", ok=True)
    run(data, ok=True)  # task one alone


def test_submit_refuses_too_and_submits_nothing(data):
    (data / "sets/one/images/test/000003.png").unlink()
    lines = refused(data, "--scheduler", "local", command="submit")
    assert lines[0] == "the data of 1 of 2 tasks cannot be used; nothing was started"
    assert not list(data.parent.glob("results/**/*.json"))


def test_a_further_test_set_without_folder_is_found(tmp_path):
    notes = tmp_path / "noah"
    layouts.imagenet(tmp_path / "data", notes)
    (tmp_path / "data/imagenet-sketch").rename(tmp_path / "sketch")
    with pytest.raises(DataError) as error:
        located(layouts.DG, Roots(data=tmp_path / "data", lists=notes))
    assert str(error.value).count("no folder") == 1 and "'imagenet-sketch'" in str(error.value)


def test_draws_that_share_a_list_tell_of_it_once(tmp_path):
    notes = tmp_path / "oxford_pets/annotations"
    layouts.few_shot(tmp_path / "oxford_pets/images", notes, layouts.FEWSHOT)
    (tmp_path / "oxford_pets/images/test 0.jpg").unlink()
    with pytest.raises(DataError) as error:
        located(layouts.FEWSHOT, Roots(data=tmp_path), ("oxford_pets",))
    assert str(error.value).count("no such file") == 1
