"""The table of methods and kinds of backbone is what the methods say, in the README too."""

import json
from pathlib import Path

from typer.testing import CliRunner

import methods
from harness.commands.main import app
from methods.coverage import NO, YES, groups, markdown
from methods.registry import all_methods
from methods.testbed import MODELS


def test_the_table_in_the_readme_is_that_of_the_command():
    text = (Path(methods.__file__).parent / "README.md").read_text()
    assert markdown() in text.partition("<!-- sctbench backbones --coverage -->\n")[2]


def test_every_method_stands_in_one_row():
    rows = groups()
    listed = [name for row in rows for name in row["methods"].partition(": ")[2].split(", ")]
    assert sorted(listed) == sorted(all_methods())
    assert all(set(row) == {*MODELS, "methods"} and {row[model] for model in MODELS} <= {YES, NO} for row in rows)


def test_the_command_gives_the_reason_of_every_refusal():
    result = CliRunner().invoke(app, ["backbones", "--coverage", "--json"])
    rows = {row["method"]: row for row in json.loads(result.stdout)}
    assert rows["linear"] == {"method": "linear", **dict.fromkeys(MODELS, "")}
    assert rows["vpt_deep"]["convnext"].endswith("needs one sequence of tokens of one width, which convnext has not")
    assert rows["vqt"]["dinov3"] == "method 'vqt' serves vit, not eva"
    assert "cannot cut fc1" in rows["fact_tt"]["eva02"]
