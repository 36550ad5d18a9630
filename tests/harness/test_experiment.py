"""What the user asks for: flags and experiment files, and the errors that answer mistakes."""

from pathlib import Path

import pytest
from command import sctbench

from harness.errors import USER_ERRORS
from harness.experiment import parse_method, read_file, select
from harness.plan import expand, make_recipe

EXAMPLES = sorted((Path(__file__).parents[2] / "suites" / "experiments").glob("*.yaml"))
FLAGS = {"suite": "demo", "methods": ["linear"]}


def plan(flags, file=None):
    return expand(select(flags, file))


@pytest.fixture
def write(tmp_path):
    def _write(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return path

    return _write


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_examples_are_valid(path):
    assert plan({}, read_file(path))


def test_the_plan_is_tasks_times_methods_times_seeds_with_tasks_outermost():
    specs = plan({"suite": "demo", "methods": ["linear", "sct:channels=24"], "seeds": 2})
    assert len(specs) == 5 * 2 * 2
    assert [s.task for s in specs[:5]] == ["photo_crops"] * 4 + ["animals"]
    assert specs[2].config["channels"] == 24
    assert specs[2].config["mode"] == "attn"  # the whole configuration, defaults included


def test_a_file_says_the_same_as_the_flags(write):
    file = read_file(
        write(
            "suite: demo\nmethods:\n  - linear\n  - {name: sct, channels: 24, lr: 4e-3}\n"
            "seeds: [3]\nrecipe: {epochs: 2}\n"
        )
    )
    flags = {"suite": "demo", "methods": ["linear", "sct:channels=24:lr=4e-3"], "seeds": [3], "recipe": {"epochs": 2}}
    assert plan({}, file) == plan(flags)
    assert plan(flags)[1].recipe.lr == 4e-3


def test_a_flag_beats_the_file(write):
    file = read_file(write("suite: demo\nmethods: [linear, lora]\nseeds: 3\n"))
    assert len(plan({"methods": ["sct"], "seeds": 1}, file)) == 5


def test_a_broken_value_in_the_file_that_a_flag_replaces_is_no_error(write):
    file = read_file(write("suite: demmo\nmethods: [linear]\n"))
    assert plan({"suite": "demo"}, file)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("suite: demo\nmethods: [linear]\nprotocl: fixed\n", 3, "unknown key 'protocl'. Did you mean 'protocol'"),
        ("suite: demmo\nmethods: [linear]\n", 1, "unknown suite 'demmo'. Did you mean 'demo'"),
        ("suite: demo\nmethods:\n  - linear\n  - adaptfomer\n", 4, "'adaptfomer'. Did you mean 'adaptformer'"),
        ("suite: demo\nmethods:\n  - {name: lora, rnk: 4}\n", 3, "has no setting 'rnk'. Did you mean 'rank'"),
        ("suite: demo\nmethods:\n  - {name: lora, rank: 0}\n", 3, "rank=0 must be at least 1"),
        ("suite: demo\nmethods:\n  - {name: lora, lr: -1.0}\n", 3, "recipe lr=-1.0 must be positive"),
        ("suite: demo\nmethods: [linear]\n\ntasks: [digit]\n", 4, "has no task 'digit'. Did you mean 'digits'"),
        ("suite: demo\nmethods: [linear]\nseeds: many\n", 3, "seeds='many' must be int or list"),
        ("suite: demo\nmethods: [linear]\nprotocol: fixd\n", 3, "unknown protocol 'fixd'. Did you mean 'fixed'"),
        ("suite: demo\nmethods: [linear]\nrecipe:\n  epoch: 3\n", 3, "no field 'epoch'. Did you mean 'epochs'"),
        (
            "suite: demo\nmethods: [linear]\nbackbone: demo_vti\n",
            3,
            "unknown backbone 'demo_vti'. Did you mean 'demo_vit'",
        ),
        ("suite: demo\nmethods: linear\n", 2, "methods='linear' must be list"),
        ("suite: demo\nsuite: demo\n", 2, "key 'suite' is given twice"),
        ("suite: [demo\n", 2, "not valid YAML"),
        ("- demo\n", 1, "an experiment is a mapping"),
    ],
)
def test_mistakes_in_a_file_are_answered_with_file_line_and_hint(write, text, line, message):
    path = write(text)
    with pytest.raises(USER_ERRORS) as caught:
        plan({}, read_file(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "say which suite"),
        ({"suite": "demo"}, "say which methods"),
        (FLAGS | {"methods": ["linear", "linear"]}, "same run twice"),
        (FLAGS | {"methods": ["nowhere.py:Mine"]}, "there is no file"),
        (FLAGS | {"seeds": 0}, "seeds=0"),
        (FLAGS | {"recipe": {"lr": "fast"}}, "lr='fast' must be of type float"),
    ],
)
def test_mistakes_in_flags_are_answered(flags, message):
    with pytest.raises(USER_ERRORS, match=message):
        plan(flags)


def test_a_missing_file_is_named():
    with pytest.raises(USER_ERRORS, match=r"/nowhere\.yaml: cannot be read"):
        read_file(Path("/nowhere.yaml"))


def test_methods_on_the_command_line():
    assert parse_method("sct:channels=24:lr=4e-3") == ("sct", {"channels": 24, "lr": 4e-3})
    assert parse_method("a/b.py:Mine:scale=0.5") == ("a/b.py:Mine", {"scale": 0.5})
    assert parse_method("lora:targets=qkv+proj") == ("lora", {"targets": ["qkv", "proj"]})
    assert parse_method("x:flag=true:lr=1e+1") == ("x", {"flag": True, "lr": 10.0})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--recipe", "epochs", "'epochs' is no setting: write key=value"),
        ("--recipe", "epochs:1", "'epochs:1' is no setting"),
        ("--recipe", "lr=1e-3,epochs=1,epochs=100", "'epochs' is given twice"),
        ("--methods", "lora:rank=4:rank=8", "'rank' is given twice"),
        ("--tasks", ",", "--tasks ,: names nothing"),
    ],
)
def test_nothing_that_is_written_on_the_command_line_is_dropped(tmp_path, option, value, message):
    given = {"--suite": "demo", "--methods": "linear"} | {option: value}
    assert message in sctbench("plan", *(word for pair in given.items() for word in pair), cwd=tmp_path, ok=False)


def test_recipe_layers_win_from_left_to_right():
    recipe = make_recipe({"epochs": 20, "lr": 1}, {"lr": 2e-3})
    assert (recipe.epochs, recipe.lr, recipe.warmup_epochs) == (20, 2e-3, 2)


def test_a_method_of_ones_own_is_planned_under_its_own_name(tmp_path):
    source = Path(__file__).parents[2] / "methods" / "linear.py"
    mine = tmp_path / "mine.py"
    mine.write_text(source.read_text().replace('name = "linear"', 'name = "my_probe"'))
    specs = plan({"suite": "demo", "methods": [f"{mine}:Linear", "linear"]})
    assert specs[0].method == "my_probe"
    assert str(tmp_path) not in str(specs[0].as_dict())


def test_a_method_of_ones_own_must_not_take_a_known_name(tmp_path):
    mine = tmp_path / "again.py"
    mine.write_text((Path(__file__).parents[2] / "methods" / "linear.py").read_text())
    with pytest.raises(USER_ERRORS, match="named 'linear' exists already"):
        plan({"suite": "demo", "methods": [f"{mine}:Linear"]})
