"""The main job as a user does it: real command, real backbone, real images, into an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.commands.main import main
from harness.records.store import Store
from tests.command import sctbench
from tests.examples import make_record, write_example_method

SCTBENCH = Path(sys.executable).parent / "sctbench"
RUN = ["run", "--suite", "demo", "--tasks", "digits", "--methods", "linear,sct:channels=8", "--recipe", "epochs=1"]


def as_typed(*arguments, cwd, ok=True):
    """The installed command in a process of its own."""
    environment = os.environ | {"COLUMNS": "120", "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run([SCTBENCH, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def record_files(folder):
    return sorted((folder / "results" / "runs").glob("*/*/*/record.json"))


def test_from_images_to_records_and_tables(tmp_path):
    output = as_typed(*RUN, cwd=tmp_path)
    assert "2 runs, 0 complete already" in output
    one_record_each(tmp_path)
    a_report(tmp_path)
    complete_runs_are_skipped_and_broken_ones_redone(tmp_path)


def one_record_each(folder):
    linear, sct = (json.loads(path.read_text()) for path in record_files(folder))
    assert linear["status"] == sct["status"] == "complete"
    assert linear["parameters"] == {
        "method": 0,
        "backbone_trained": 0,
        "head": 3850,
        "total": linear["parameters"]["total"],
    }
    assert sct["parameters"]["method"] == 6 * (8 * 8 + 8)
    assert linear["test_looks"] == sct["test_looks"] == 1
    assert [len(block) for block in sct["method_info"]["channels"]] == [8] * 6
    assert sum(sct["metrics"]["test"]["images_per_class"]) == 600
    assert sct["metrics"]["test"]["values"]["accuracy"] > 10
    assert sct["cost"]["forward_flops"] > linear["cost"]["forward_flops"] > 3e8
    assert sct["cost"]["training_flops"] > 2 * sct["cost"]["forward_flops"] - linear["cost"]["forward_flops"]
    assert set(sct["cost"]["latency_seconds"]) == {"1", "64"}
    assert str(folder) not in json.dumps(sct)


def complete_runs_are_skipped_and_broken_ones_redone(folder):
    before = {path: path.read_text() for path in record_files(folder)}
    assert "2 runs, 2 complete already" in sctbench(*RUN, cwd=folder)
    assert {path: path.read_text() for path in record_files(folder)} == before
    broken = record_files(folder)[1]
    broken.write_text(before[broken][:-100])
    assert "2 runs, 1 complete already" in sctbench(*RUN, cwd=folder)
    again, old = json.loads(broken.read_text()), json.loads(before[broken])
    for part in ("spec", "run_id", "metrics", "curve", "parameters", "data"):
        assert again[part] == old[part]
    assert again["method_info"]["channels"] == old["method_info"]["channels"]


def a_report(folder):
    output = sctbench("report", cwd=folder)
    assert "digits" in output and "SCT" in output and "mean of 1 of" not in output
    for line in output.splitlines():
        if line.startswith("wrote "):
            assert (folder / line.removeprefix("wrote ")).is_file()


def test_a_defective_method_fails_alone_and_the_exit_status_tells(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from methods.linear import Linear\n\n\n"
        "class Broken(Linear):\n"
        '    name = "broken"\n'
        '    title = "Broken"\n\n'
        "    def attach(self, backbone, context):\n"
        '        raise RuntimeError("a defect")\n'
    )
    arguments = [*RUN[:5], "--methods", f"{mine}:Broken,linear", "--recipe", "epochs=1", "--jobs", "1"]
    output = sctbench(*arguments, cwd=tmp_path, ok=False)
    assert "FAILED" in output and "a defect" in output
    states = {
        json.loads(p.read_text())["spec"]["method"]: json.loads(p.read_text())["status"] for p in record_files(tmp_path)
    }
    assert states == {"broken": "failed", "linear": "complete"}
    assert "failed" in sctbench("report", cwd=tmp_path)


def test_a_method_of_ones_own_is_in_list_run_and_table_with_a_cache_of_ones_own(tmp_path):
    mine = write_example_method(tmp_path)
    assert "Example" in sctbench("methods", mine, cwd=tmp_path)
    methods = ["--methods", f"{mine}:std=0.01,linear", "--recipe", "epochs=1", "--jobs", "1"]
    output = sctbench("--cache-dir", tmp_path / "mine", *RUN[:5], *methods, cwd=tmp_path)
    assert "Decoded images of the selection: 7.5 MB in" in output
    assert list((tmp_path / "mine" / "arrays").glob("demo-digits-test-*.npy"))
    records = [json.loads(path.read_text()) for path in record_files(tmp_path)]
    (record,) = [record for record in records if record["spec"]["method"] == "example"]
    assert record["parameters"]["method"] == 6 * 4 * 384
    table = sctbench("report", cwd=tmp_path)
    assert "Example" in table and "Linear" in table


@pytest.mark.parametrize("command", ["methods", "suites", "backbones"])
def test_lists_are_printed_and_are_json(command, tmp_path):
    assert len(sctbench(command, cwd=tmp_path).splitlines()) >= 2
    assert isinstance(json.loads(sctbench(command, "--json", cwd=tmp_path)), list)


def test_mistakes_are_one_line_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sctbench", "run", "--suite", "dmo", "--methods", "sct"])
    with pytest.raises(SystemExit, match="2"):
        main()
    expected = (
        "error: unknown suite 'dmo'. Did you mean 'demo' or 'demo-dg' or 'demo-full'? "
        "There is no folder or table of that name either."
    )
    assert " ".join(capsys.readouterr().err.split()) == expected
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_to_is_answered_by_name(tmp_path, monkeypatch, capsys):
    Store(tmp_path).write(make_record())
    monkeypatch.setattr(sys, "argv", ["sctbench", "report", "--out", str(tmp_path), "--to", "/sys/report"])
    monkeypatch.setenv("MPLBACKEND", "agg")
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 2 and "/sys/report" in told and "see its permissions" in " ".join(told.split())
