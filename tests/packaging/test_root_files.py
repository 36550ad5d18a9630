"""The files at the root agree with the project: versions, links, hooks and the workflow."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = [path.relative_to(ROOT) for path in sorted([*ROOT.glob("*.md"), ROOT / "methods" / "README.md"])]


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_version_is_cited_and_its_changes_are_listed():
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == PROJECT["version"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document):
    folder = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text()):
        path, _, heading = link.partition("#")
        if not path.startswith("http"):
            target = folder / path if path else ROOT / document
            assert target.exists(), link
            assert not heading or heading in headings(target.read_text()), link


def headings(text):
    """What links call the headings of a document."""
    return {
        re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }


def test_hooks_are_programs_of_the_environment_and_in_lint():
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert f"$(BIN)/{hook['name']}" in lint
        assert hook["entry"].startswith(f".venv/bin/{hook['name']}")


def test_the_workflow_runs_what_a_change_must_pass_on_the_oldest_python():
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    oldest, newest = job["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={oldest}" and newest == "3.13"
