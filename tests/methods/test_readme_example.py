"""The example of methods/README.md is a method: it loads by path, passes every check, and is listed."""

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from methods import conformance, registry
from methods.testbed import small_vit
from tests.examples import write_example_method


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
