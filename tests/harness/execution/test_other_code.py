"""Workers and jobs run the code of the process that started them, whatever lies in the folder that they start in."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import methods
from harness import sources
from harness.errors import HarnessError
from harness.execution import local, worker
from slurm.report_job import ReportJob
from tests import tiny
from tests.examples import stored

ROOT = Path(sources.__file__).resolve().parents[1]


def fork_of_methods(folder):
    """A folder with another version of our methods: BitFit trains three biases."""
    shutil.copytree(Path(methods.__file__).parent, folder / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "methods" / "bitfit.py"
    text = file.read_text()
    assert "body_biases(backbone)" in text
    file.write_text(text.replace("body_biases(backbone)", "body_biases(backbone)[:3]"))
    return folder


def python(script, cwd, path=(), **environment):
    """A script's end in a process of its own; `path` comes first on Python's."""
    paths = os.pathsep.join(map(str, (*path, ROOT)))
    command = [sys.executable, script]
    settings = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True)


def test_a_script_without_a_main_guard_in_a_folder_with_other_methods(data, tmp_path):
    """Once more in each worker, it would start workers itself; and they would train three biases alone."""
    (tmp_path / "other").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from pathlib import Path
            from tests import tiny
            from harness.data.lists import Roots
            from harness.execution import local
            setup = tiny.setup(Path({str(tmp_path / "out")!r}), Roots(data=Path({str(data.data)!r})))
            local.execute(tiny.specs(["bitfit"]), [setup], lambda spec, message: None)
            print("done once")
            """
        )
    )
    done = python(script, fork_of_methods(tmp_path / "other"), SCTBENCH_CACHE=str(data.data / "cache"))
    assert (done.returncode, done.stdout) == (0, "done once\n"), done.stderr
    (record,), _ = stored(tmp_path / "out")
    (spec,) = tiny.specs(["bitfit"])
    own = tiny.setup(tmp_path / "own", data)
    worker.init_worker(own)
    assert tiny.lasting(record) == tiny.lasting(worker.execute_run(spec, own))


@pytest.mark.parametrize("kind", ["package", "plain folder"])
def test_another_package_of_our_name_on_the_path_is_refused_by_name(tmp_path, kind):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / ("__init__.py" if kind == "package" else "mine.py")).touch()
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path = [at for at in sys.path if at != {str(ROOT)!r}]; import sctbench")
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "sctbench").symlink_to(ROOT / "sctbench")
    done = python(script, tmp_path, path=(tmp_path, tmp_path / "rooms"))
    assert done.returncode == 1
    assert f"{tmp_path / 'analysis'} hides the package 'analysis' of SCT Bench, which lies in {ROOT}" in done.stderr


def test_a_worker_with_other_sources_does_nothing(data, tmp_path):
    setup = dataclasses.replace(tiny.setup(tmp_path, data), sources="0ther")
    with pytest.raises(HarnessError, match=r"a worker process cannot work: other sources .* methods from .*0ther"):
        local.execute(tiny.specs(["linear"]), [setup], lambda spec, message: None)
    assert stored(tmp_path) == ([], [])


def test_a_worker_that_cannot_start_is_no_failure_of_its_run(data, tmp_path):
    setup = dataclasses.replace(tiny.setup(tmp_path, data), method_files=["/nowhere/mine.py:Mine"])
    with pytest.raises(HarnessError, match="there is no file /nowhere/mine"):
        local.execute(tiny.specs(["linear"]), [setup], lambda spec, message: None)
    assert stored(tmp_path) == ([], [])


def test_the_job_for_the_tables_compares_sources_first(tmp_path):
    with pytest.raises(HarnessError, match=r"other sources .* analysis from .*0ther"):
        ReportJob(root=tmp_path, suite="tiny", sources="0ther")()
    assert not (tmp_path / "report").exists()


def test_the_digest_is_of_what_is_imported_and_of_files_of_settings(tmp_path, monkeypatch):
    digest = sources.source_digest.__wrapped__
    before = digest()
    assert before == sources.source_digest() != digest(sources.ALL_ROOMS)
    shutil.copytree(ROOT / "suites", tmp_path / "suites", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sys.modules["suites"].__spec__, "submodule_search_locations", [str(tmp_path / "suites")])
    assert digest() == before
    with (tmp_path / "suites" / "vtab1k.yaml").open("a") as file:
        file.write("# one class more\n")
    assert digest() != before


def test_a_notebooks_figure_backend_does_not_reach_the_report(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.argv = ['sctbench', 'report']\n"
        "from harness.commands.main import main\nimport atexit; atexit.register(lambda: __import__('matplotlib'))\n"
        "main()"
    )
    done = python(script, tmp_path, MPLBACKEND="module://of_the_notebook_alone")
    assert "Traceback" not in done.stderr, done.stderr
