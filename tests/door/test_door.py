"""`import sctbench`: the same as the command line, in scripts and notebooks, whatever lies in the working folder."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pandas as pd
import pytest

import sctbench as sb
from tests import layouts, tiny
from tests.command import sctbench

ROOT = Path(__file__).parents[2]
SUITE = """
recipe: {epochs: 1, batch_size: 6, precision: float32}
tasks:
  - {name: one, group: all, num_classes: 3}
  - {name: two, group: all, num_classes: 3}
"""
ASKED = {"suite": "sb.yaml", "methods": ["linear", "lora"], "backbone": "test_vit", "weights": "random"}
ASKED |= {"image_size": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a suite of the user's own, and its data."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "sb.yaml").write_text(SUITE)
    for task in ("one", "two"):
        layouts.vtab(folder / "data", task)
    return folder


def python(*arguments, cwd, **environment):
    """Python in a process of its own."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=settings, capture_output=True, text=True)


def test_a_plan_shows_its_tasks_runs_and_hours(place, monkeypatch):
    monkeypatch.chdir(place)
    plan = sb.plan(**ASKED, seeds=2)
    assert re.search(r"^one +2 +2 +4 +0 ", repr(plan), re.MULTILINE) and "8 runs, 0 complete already" in repr(plan)
    assert "<td>two</td><td>2</td><td>2</td><td>4</td>" in plan._repr_html_() and "GPU hours" in plan._repr_html_()
    same = sctbench("plan", "--suite", "sb.yaml", "--methods", "linear,lora", *FLAGS, "--seeds", "2", cwd=place)
    assert repr(plan).splitlines()[-2] in same


FLAGS = ["--backbone", "test_vit", "--weights", "random", "--image-size", "32"]


def test_from_a_plan_to_records_frame_tables_and_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    plan = sb.plan(**ASKED)
    records = sb.run(plan, "results", root="data", device="cpu")
    assert [(r.spec.task, r.spec.method, r.status) for r in records] == [
        (task, method, "complete") for task in ("one", "two") for method in ("linear", "lora")
    ]
    assert "4 runs, 0 complete already" in capsys.readouterr().out
    again = sb.run(plan, "results", root="data", device="cpu", jobs=1, quiet=True)
    assert list(map(tiny.lasting, again)) == list(map(tiny.lasting, records)) and capsys.readouterr().out == ""
    frame = sb.frame("results")
    assert isinstance(frame, pd.DataFrame) and set(frame["method"]) == {"linear", "lora"} and len(frame) == 4
    tables = sb.table(frame[frame["task"] == "one"])
    assert len(tables) == 1 and "LoRA" in repr(tables) and "two" not in repr(tables)
    assert tables._repr_html_().startswith('<table class="results"')
    page = sb.report("results", reference="lora")
    assert page == Path("results/report/index.html") and page.is_file() and capsys.readouterr().out == ""
    assert "4 complete already" in sctbench(
        "run", "--suite", "sb.yaml", "--methods", "linear,lora", *FLAGS, "--root", "data", "--device", "cpu", cwd=place
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "say which suite"),
        ({"suite": "dmo"}, "unknown suite 'dmo'. Did you mean 'demo'"),
        ({"methods": ["sctt"]}, "unknown method 'sctt'. Did you mean 'sct'"),
        ({"methods": "sct"}, "methods='sct' must be of type list"),
        ({"methods": [5]}, "a method is a name or a mapping"),
        ({"methods": ["sct:chanels=5"]}, "method 'sct' has no setting 'chanels'. Did you mean 'channels'"),
        ({"tasks": ["digit"]}, "has no task 'digit'. Did you mean 'digits'"),
        ({"seeds": "two"}, "seeds='two' must be of type int or list"),
        ({"seeds": [-1]}, "must be a number of seeds or a list of seeds"),
        ({"protocol": "fixt"}, "fixt"),
        ({"recipe": {"lrr": 1.0}}, "the recipe has no field 'lrr'. Did you mean"),
        ({"recipe": {"epochs": "five"}}, "recipe epochs='five' must be of type int"),
        ({"weights": Path("nowhere.pth")}, "nowhere.pth"),
        ({"experiment": "nowhere.yaml"}, "nowhere.yaml"),
        ({"experiment": 5}, "experiment=5 must be str or Path"),
    ],
    ids=str,
)
def test_wrong_values_are_answered_as_on_the_command_line(asked, words):
    with pytest.raises(sb.Error, match=re.escape(words)):
        sb.plan(**({"suite": "demo", "methods": ["linear"]} | asked if asked else {}))


def test_wrong_ways_to_run_and_to_look(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    plan = sb.plan(**ASKED)
    for call, words in (
        (lambda: sb.run("demo"), "what is run is a plan"),
        (lambda: sb.run(plan, jobs=0), "jobs=0 must be a number of worker processes"),
        (lambda: sb.run(plan, out=None), "out=None must be str or Path"),
        (lambda: sb.run(plan, root="nowhere"), "root nowhere: no such folder"),
        (lambda: sb.run(plan, root="data", device="gpu"), "unknown device 'gpu'"),
        (lambda: sb.run(plan, root="data", curve=True), "curve: under protocol 'fixed'"),
        (lambda: sb.run(plan, root="data", redo="all"), "redo all: only `redo stale` is known"),
        (lambda: sb.run(plan, root="data", track=["wandbb"]), "track wandbb: no such tracker. Did you mean 'wandb'"),
        (lambda: sb.submit("demo"), "what is run is a plan"),
        (lambda: sb.submit(plan, profile="nowhere.yaml"), "nowhere.yaml"),
        (lambda: sb.submit(plan, scheduler="slrum"), "slrum"),
        (lambda: sb.submit(plan, gpu=1), "gpu"),
        (
            lambda: sb.submit(plan, tmp_path / "out", scheduler="local", gpus=0, root="nowhere"),
            "root nowhere: no such",
        ),
        (lambda: sb.frame(tmp_path), "no records below"),
        (lambda: sb.report(tmp_path), "no records"),
        (lambda: sb.report(tmp_path, suite="dmo"), "no suite 'dmo'"),
        (lambda: sb.table(pd.DataFrame()), "lacks the columns suite"),
        (lambda: sb.table(None), "lacks the columns suite"),
        (lambda: sb.check("sctt"), "unknown method 'sctt'"),
    ):
        with pytest.raises(sb.Error, match=re.escape(words)) as error:
            call()
        assert "--" not in str(error.value)
    assert not list(tmp_path.rglob("record.json"))


def test_a_rehearsal_of_a_submission(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert sb.submit(sb.plan(**ASKED), tmp_path / "out", time="1:00:00", gpus=0, dry_run=True) is None
    told = capsys.readouterr().out
    assert "4 runs: 0 complete, 0 submitted already, 4 to submit" in told and "Nothing was submitted." in told
    assert not (tmp_path / "out").exists()


def test_check_names_each_check(place):
    results = sb.check("linear")
    assert set(results.values()) == {"ok"} and "shortcuts" in results


def test_the_version_and_an_import_that_loads_little(tmp_path):
    assert re.fullmatch(r"\d+\.\d+\.\d+", sb.__version__)
    assert python("-m", "sctbench", "--version", cwd=tmp_path).stdout == f"sctbench {sb.__version__}\n"
    assert f"sctbench {sb.__version__}" in sctbench("--version", cwd=tmp_path)
    script = "import sys, sctbench; sctbench.__version__; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    assert python("-c", script, cwd=tmp_path).stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sb.nothing


SCRIPT = """
import sctbench as sb
plan = sb.plan(suite="sb.yaml", methods=["linear", "lora"], backbone="test_vit", weights="random", image_size=32)
records = sb.run(plan, OUT, root="data", device="cpu", jobs=2)
print([record.status for record in records])
"""


def test_a_script_without_a_main_guard_with_workers(place, tmp_path):
    script = place / "script.py"
    script.write_text(SCRIPT.replace("OUT", repr(str(tmp_path / "out"))))
    done = python("script.py", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("['complete', 'complete', 'complete', 'complete']") == 1
    assert done.stdout.count("4 runs, 0 complete already") == 1


def execute(cells, folder):
    """The cells of a notebook, executed by a kernel in `folder`; their outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def test_the_notebook_of_the_readme_and_one_with_workers(place, tmp_path):
    """In one kernel, for each imports for ten seconds."""
    code = re.search(r"## In Python.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    cells = [ast.get_source_segment(code, statement) for statement in ast.parse(code).body]
    assert len(cells) <= 10
    with_workers = SCRIPT.replace("OUT", repr(str(tmp_path / "out"))).strip().splitlines()
    *made, _, _, _, shown = execute([*cells, f"%cd {place}", *with_workers[1:]], tmp_path)
    assert shown[-1]["text"].strip() == "['complete', 'complete', 'complete', 'complete']"
    outputs = dict(zip(cells, made, strict=True))
    assert "2 runs, 0 complete already" in outputs["plan"][0]["data"]["text/html"]
    (table,) = outputs["sb.table(runs)"]
    assert '<table class="results"' in table["data"]["text/html"] and "LoRA" in table["data"]["text/plain"]
    assert (tmp_path / "results" / "report" / "index.html").is_file()
    assert "images/test/000000.png" in outputs["sb.predictions(records[1]).head()"][0]["data"]["text/plain"]
    numbers = next(made for cell, made in outputs.items() if cell.startswith("[("))
    assert re.fullmatch(r"\[\('linear', [\d.]+\), \('lora', [\d.]+\)\]", numbers[0]["data"]["text/plain"])


class TestAFileOfOneOfOurNames:
    """In the working folder."""

    @pytest.fixture(params=["methods", "analysis", "suites", "slurm", "harness"])
    def name(self, request, tmp_path):
        (tmp_path / f"{request.param}.py").write_text("raise RuntimeError('this is not ours')\n")
        return request.param

    def test_is_named_at_once(self, name, tmp_path):
        done = python("-m", "sctbench", "--version", cwd=tmp_path)
        assert done.returncode and f"{tmp_path / name}.py hides the package {name!r} of SCT Bench" in done.stderr
        assert "Rename it" in done.stderr and "this is not ours" not in done.stderr
        assert python("-P", "-m", "sctbench", "--version", cwd=tmp_path).returncode == 0

    def test_is_named_after_a_change_of_the_working_folder_too(self, name, tmp_path):
        script = f"import os, sctbench; os.chdir({str(tmp_path)!r}); sctbench.frame()"
        (tmp_path / "elsewhere").mkdir()
        done = python("-c", script, cwd=tmp_path / "elsewhere")
        assert f"hides the package {name!r} of SCT Bench" in done.stderr

    def test_is_out_of_the_way_of_the_command(self, tmp_path):
        for name in ("methods", "analysis", "suites", "slurm", "harness"):
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not ours')\n")
        script = Path(sys.executable).parent / "sctbench"
        listed = subprocess.run([script, "suites"], cwd=tmp_path, capture_output=True, text=True)
        assert listed.returncode == 0 and "digits" in listed.stdout

    def test_is_named_in_a_notebook_and_under_pytest(self, tmp_path):
        (tmp_path / "methods.py").write_text("raise RuntimeError('this is not ours')\n")
        (tmp_path / "test_mine.py").write_text("import sctbench\n")
        done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
        assert "methods.py hides the package 'methods' of SCT Bench" in done.stdout and done.returncode
        with pytest.raises(nbclient.exceptions.CellExecutionError, match="hides the package 'methods' of SCT Bench"):
            execute(["import sctbench"], tmp_path)
