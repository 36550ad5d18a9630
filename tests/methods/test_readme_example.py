"""The example of methods/README.md is a method: it loads by path, passes every check, and is listed. What the guide
says of mistakes and of a loss holds for it."""

import re
import textwrap

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from methods import conformance, registry
from methods.testbed import small_vit
from tests.examples import METHODS_README, write_example_method

GUIDE = METHODS_README.read_text()
MISTAKES = re.findall(r"^\| `([^|]+)` \| `([^|]+)` \| (\w+): (.+) \|$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_example_method(tmp_path_factory.mktemp("outside"))


@pytest.mark.parametrize("check", conformance.CHECKS)
def test_example_conforms(reference, check):
    conformance.CHECKS[check](registry.get(reference))


def test_example_is_known_by_path_and_then_by_name(reference):
    cls = registry.get(reference)
    assert registry.get("example") is cls
    assert registry.describe(cls, small_vit())["parameters"] == 3 * 4 * 32


def test_check_command_passes_the_example(reference):
    result = CliRunner().invoke(app, ["check", reference])
    assert result.exit_code == 0, result.output
    assert "failed" not in result.output


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """The example with a text in place of another, as a class."""
    monkeypatch.setattr(registry, "_external", {})

    def change(*replacements):
        file = tmp_path / "changed.py"
        write_example_method(tmp_path)
        source = (tmp_path / "example.py").read_text()
        for old, new in replacements:
            assert old in source
            source = source.replace(old, new)
        file.write_text(source)
        return registry.get(f"{file}:Example")

    return change


def test_there_are_five_mistakes():
    assert len(MISTAKES) == 5


@pytest.mark.parametrize(("instead_of", "written", "check", "says"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_check_says_of_a_mistake_what_the_guide_says(changed, instead_of, written, check, says):
    assert says in conformance.run_check(check, changed((instead_of, written)))


def test_the_contrastive_loss_of_the_guide_works(changed):
    _, _, after = GUIDE.partition("A contrastive loss on labels")
    (code, *_) = re.findall(r"```python\n(.*?)```", after, re.DOTALL)
    method = changed(
        ("        return Attachment()\n", textwrap.indent(code, " " * 8)),
        ("import Attachment, Context", "import Attachment, Batch, Context"),
    )
    for check in ("backbones", "step", "gradients", "learns", "resume"):
        assert conformance.run_check(check, method) is None
