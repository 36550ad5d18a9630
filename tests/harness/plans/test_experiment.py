"""What the user asks for: flags and experiment files, and the errors that answer mistakes."""

from pathlib import Path

import pytest

from harness.errors import USER_ERRORS
from harness.plans import experiment
from harness.plans.experiment import parse_method, read_file, select
from harness.plans.plan import expand, make_recipe
from suites import SUITES, load_suite
from tests.command import sctbench

EXAMPLES = sorted((Path(__file__).parents[3] / "suites" / "experiments").glob("*.yaml"))
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
        ("suite: demo\nmethods: [linear]\nseeds: many\n", 3, "seeds='many' must be of type int or list"),
        ("suite: demo\nmethods: [linear]\nprotocol: fixd\n", 3, "unknown protocol 'fixd'. Did you mean 'fixed'"),
        ("suite: demo\nmethods: [linear]\nrecipe:\n  epoch: 3\n", 3, "no field 'epoch'. Did you mean 'epochs'"),
        (
            "suite: demo\nmethods: [linear]\nbackbone: demo_vti\n",
            3,
            "unknown backbone 'demo_vti'. Did you mean 'demo_vit'",
        ),
        ("suite: demo\nmethods: linear\n", 2, "methods='linear' must be of type list"),
        ("suite: demo\nsuite: demo\n", 2, "key 'suite' is given twice"),
        ("suite: demo\nmethods: [linear]\nseeds: 010\n", 3, "'010' is octal to YAML"),
        ("suite: demo\nmethods: [linear]\nseeds: 08\n", 3, "'08' is octal to YAML"),
        ("suite: demo\nmethods: [linear]\nseeds: 1_0\n", 3, "'1_0' is a number without its underscores"),
        ("suite: demo\nmethods: [linear]\nseeds: 1:30\n", 3, "'1:30' is a number in base 60"),
        ("suite: demo\nmethods:\n  - linear\n  - lora:rank=010\n", 4, "rank: '010' is octal to YAML"),
        ("suite: demo\nmethods:\n  - {name: lora, rank: 010}\n", 3, "'010' is octal to YAML"),
        ("suite: demo\nmethods: [linear]\ntasks: [digits, no]\n", 3, "'no' is true or false to YAML"),
        ("suite: demo\nmethods: [linear]\nrecipe:\n  off: 1\n", 4, "'off' is true or false to YAML"),
        ("suite: demo\nmethods: [linear]\nbackbone: 2024-01-31\n", 3, "'2024-01-31' is a date to YAML"),
        ("suite: [demo\n", 2, "not valid YAML"),
        ("- demo\n", 1, "an experiment is a mapping"),
        ("suite: demo\nmethods: [linear]\nseeds: true\n", 3, "seeds=True must be of type int or list"),
        ("suite: demo\nmethods: [linear]\nseeds: [true]\n", 3, "seeds=[True] must be"),
        ("suite: demo\nmethods: [linear]\nseeds: 99999999999999\n", 3, "seeds=99999999999999 must be"),
        ("suite: demo\nmethods: [linear]\ntasks: [[a]]\n", 3, "has no task ['a']"),
        ("suite: demo\nmethods: [linear]\nshots: [[a]]\n", 3, "has no shots=['a']"),
        ("suite: demo\nmethods: [linear]\nrecipe: {lr: .inf}\n", 3, "recipe lr=inf must be a finite number"),
        ("suite: demo\nmethods: [linear]\nrecipe: {lr: .nan}\n", 3, "recipe lr=nan must be a finite number"),
        ("suite: demo\nmethods: [linear]\nrecipe: {lr: true}\n", 3, "recipe lr=True must be of type float"),
        ("suite: demo\nmethods: [linear]\nrecipe: {1: 2}\n", 3, "the recipe has no field 1"),
        ("suite: demo\nmethods: [{name: lora, alpha: .inf}]\n", 2, "alpha=inf must be a finite number"),
        ("suite: demo\nmethods: [{name: lora, 1: 2}]\n", 2, "has no setting 1"),
        ("suite: demo\nmethods: [linear]\nimage_size: 50\n", 3, "image_size=50 must be a multiple of 14"),
        ("suite: demo\nmethods: [linear]\nimage_size: 0\n", 3, "image_size=0 must be a multiple of 14"),
        ("suite: demo\nmethods: [linear]\nimage_size: true\n", 3, "image_size=True must be of type int"),
        ("suite: demo\nmethods: [linear]\n1: 2\n", 3, "unknown key 1"),
        ("suite: demo\n\x07\n", 2, "not valid YAML: a control character"),
    ],
)
def test_mistakes_in_a_file_are_answered_with_file_line_and_hint(write, text, line, message):
    path = write(text)
    with pytest.raises(USER_ERRORS) as caught:
        plan({}, read_file(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


TASK = "{name: t, group: g, num_classes: 3, lists: {train: train.txt, test: test.txt}}"


def with_task(change="", key="x"):
    """A suite of one task, with something changed in it, in line 2."""
    return "name: mine\ntasks: [" + (TASK.replace(key, change) if change else TASK) + "]\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: ../up\n" + with_task()[11:], 1, "name='../up' must be a text of letters"),
        ("name: 2024\n" + with_task()[11:], 1, "name=2024 must be a text of letters"),
        ("name: '..'\n" + with_task()[11:], 1, "name='..' must be a text of letters"),
        (with_task("name: a/b", "name: t"), 2, "name='a/b' must be a text of letters"),
        (with_task("name: 5", "name: t"), 2, "name=5 must be a text of letters"),
        (with_task("group: [g]", "group: g"), 2, "group=['g'] must be a text"),
        (with_task("num_classes: true", "num_classes: 3"), 2, "num_classes=True must be a positive whole number"),
        (with_task("lists: a.txt}", TASK[TASK.index("lists") :]), 2, "lists='a.txt' must be a mapping of train, val"),
        (with_task("tset:", "test:"), 2, "lists={'train': 'train.txt', 'tset': 'test.txt'} must be a mapping of train"),
        (with_task("'{seed}.txt'", "train.txt"), 2, "a list is named by {seed}, of which the suite has none"),
        (with_task("'{shots}.txt'", "train.txt"), 2, "a list is named by {shots}, of which the suite has none"),
        (with_task("'{.txt'", "train.txt"), 2, "list train='{.txt': expected '}'"),
        (with_task() + "shots: [1, 2]\n", 2, "no list is named by {shots}, of which the suite has some"),
        (with_task() + "shots: 4\n", 3, "shots=4 must be a list of different positive whole numbers"),
        (with_task() + "folders: data\n", 3, "folders='data' must be a list of different texts"),
        (with_task() + "defaults: 3\n", 3, "defaults=3 must be a mapping"),
        (with_task() + "defaults: {sizes: 3}\n", 3, "sizes=3 must be a mapping of train, val, test, trainval to"),
        (with_task() + "final_split: trianval\n", 3, "final_split='trianval' must be train or trainval"),
        (with_task("3, targets: 5", "3"), 2, "targets=5 must be a list"),
        (with_task("3, targets: [{name: test, folders: [x]}]", "3"), 2, "a target is named 'test', as a split or"),
        (with_task("3, targets: [{name: a, folders: [x]}, {name: a, folders: [y]}]", "3"), 2, "a target is named 'a'"),
        ("name: mine\ntasks: {a: 1}\n", 2, "tasks={'a': 1} must be a list"),
        ("name: mine\ntasks:\n- foo\n", 3, "task must be a mapping, not 'foo'"),
        ("name: mine\n\x07\n", 2, "not valid YAML: a control character"),
    ],
)
def test_mistakes_in_a_suite_are_answered_with_file_and_line(write, text, line, message):
    path = write(text)
    with pytest.raises(USER_ERRORS) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (with_task("3, metric: macrof1", "3"), 2, "metric='macrof1' is no metric. Did you mean 'macro_f1'?"),
        (with_task("3, metric: [ece]", "3"), 2, "metric=['ece'] must be a text"),
        (with_task("3, metric: auroc", "3"), 2, "metric='auroc' is not defined for num_classes=3"),
        (with_task("3, metric: top5_accuracy", "3"), 2, "metric='top5_accuracy' is not defined for num_classes=3"),
        (with_task() + "defaults: {metric: macro}\n", 3, "metric='macro' is no metric. Did you mean 'macro_f1'?"),
        (with_task() + "defaults: {metric: auroc}\n", 2, "metric='auroc' is not defined for num_classes=3"),
    ],
)
def test_a_primary_metric_must_be_known_and_defined(write, text, line, message):
    path = write(text)
    with pytest.raises(USER_ERRORS) as caught:
        select({"suite": str(path), "methods": ["linear"]})
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)


def test_a_suite_may_give_all_its_tasks_one_primary_metric(write, monkeypatch):
    monkeypatch.setattr(experiment, "SUITES", {})
    other = TASK.replace("name: t,", "name: two, metric: ece,")
    path = write(f"name: mine\ndefaults: {{metric: macro_f1}}\ntasks: [{TASK}, {other}]\n")
    suite = experiment.find_suite(str(path))
    assert [task.metric for task in suite.tasks] == ["macro_f1", "ece"]


def test_the_suites_of_the_field_are_judged_by_top_1():
    assert {task.metric for suite in SUITES.values() for task in suite.tasks} == {"accuracy"}


def test_only_where_a_metric_chooses_the_epoch_is_it_part_of_a_runs_identity(write, monkeypatch):
    monkeypatch.setattr(experiment, "SUITES", {})

    def ids(metric, protocol):
        path = write(f"name: mine\ndefaults: {{metric: {metric}}}\ntasks: [{{name: t, group: g, num_classes: 3}}]\n")
        experiment.SUITES.clear()
        return [spec.run_id for spec in plan({"suite": str(path), "methods": ["linear"], "protocol": protocol})]

    assert ids("accuracy", "oracle") != ids("macro_f1", "oracle")
    for protocol in ("fixed", "validation"):
        assert ids("accuracy", protocol) == ids("macro_f1", protocol)


@pytest.mark.parametrize(
    ("lists", "final", "protocol", "missing"),
    [
        ("train: a, val: b", "train", "fixed", "test"),
        ("train: a, test: b", "trainval", "fixed", "trainval"),
        ("train: a, test: b", "train", "validation", "val"),
        ("train: a, test: b", "train", "tuned", "val"),
        ("trainval: a, val: b, test: b", "trainval", "tuned", "train"),
        ("train: a, val: b", "train", "validation", ""),
    ],
)
def test_lists_that_a_protocol_needs_are_demanded_before_anything_runs(
    write, monkeypatch, lists, final, protocol, missing
):
    name = f"lists_{final}_{protocol}_{missing}"
    text = f"name: {name}\nfinal_split: {final}\ntasks: [{TASK}]\n"
    monkeypatch.setattr(experiment, "SUITES", {})
    flags = {"methods": ["linear"], "protocol": protocol}
    flags["suite"] = str(write(text.replace("train: train.txt, test: test.txt", lists)))
    if not missing:
        assert select(flags).protocol == protocol
        return
    with pytest.raises(USER_ERRORS, match=f"has no {missing} split, which protocol '{protocol}' needs"):
        select(flags)


def test_a_mistake_in_the_recipe_of_a_suite_names_the_file(write):
    path = write(with_task() + "recipe: {epoch: 3}\n")
    with pytest.raises(USER_ERRORS, match=rf"^{path}: the recipe has no field 'epoch'"):
        select(FLAGS | {"suite": str(path)})


def test_runs_that_need_a_folder_are_not_started_without_one(tmp_path):
    few = ["--suite", "vtab1k", "--tasks", "svhn", "--methods", "linear", "--device", "cpu"]
    assert "needs the folder that holds its data: --root DIR" in sctbench("run", *few, cwd=tmp_path, ok=False)
    assert "no such folder" in sctbench("run", *few, "--root", "nowhere", cwd=tmp_path, ok=False)
    assert "needs the folder" in sctbench("submit", *few[:-2], "--scheduler", "local", cwd=tmp_path, ok=False)
    (tmp_path / "file").write_text("")
    assert "is a file" in sctbench("run", *few, "--out", "file", cwd=tmp_path, ok=False)


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
        ("--methods", "lora:rank=010", "rank: '010' is octal to YAML"),
        ("--recipe", "epochs=1_0", "epochs: '1_0' is a number without its underscores"),
        ("--recipe", "epochs=[", "epochs: '[' is not valid YAML"),
        ("--tasks", ",", "--tasks ,: names nothing"),
        ("--shots", "", "--shots : names nothing"),
    ],
)
def test_nothing_that_is_written_on_the_command_line_is_dropped(tmp_path, option, value, message):
    given = {"--suite": "demo", "--methods": "linear"} | {option: value}
    assert message in sctbench("plan", *(word for pair in given.items() for word in pair), cwd=tmp_path, ok=False)


def test_recipe_layers_win_from_left_to_right():
    recipe = make_recipe({"epochs": 20, "lr": 1}, {"lr": 2e-3})
    assert (recipe.epochs, recipe.lr, recipe.warmup_epochs) == (20, 2e-3, 2)


def test_a_method_of_ones_own_is_planned_under_its_own_name(tmp_path):
    source = Path(__file__).parents[3] / "methods" / "linear.py"
    mine = tmp_path / "mine.py"
    mine.write_text(source.read_text().replace('name = "linear"', 'name = "my_probe"'))
    specs = plan({"suite": "demo", "methods": [f"{mine}:Linear", "linear"]})
    assert specs[0].method == "my_probe"
    assert str(tmp_path) not in str(specs[0].as_dict())


def test_a_method_of_ones_own_must_not_take_a_known_name(tmp_path):
    mine = tmp_path / "again.py"
    mine.write_text((Path(__file__).parents[3] / "methods" / "linear.py").read_text())
    with pytest.raises(USER_ERRORS, match="named 'linear' exists already"):
        plan({"suite": "demo", "methods": [f"{mine}:Linear"]})
