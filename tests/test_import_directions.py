"""Rooms may import only what `README.md` says: nothing downstream is imported upstream."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"methods", "suites", "harness", "slurm", "analysis"}
MAY_IMPORT = {
    "suites": set(),
    "methods": set(),
    "harness": {"methods", "suites"},
    "slurm": {"harness", "suites"},
    "analysis": {"harness", "suites"},
}
ANALYSIS_MAY_USE = {
    "harness.plans.protocol",
    "harness.plans.spec",
    "harness.records.files",
    "harness.records.record",
    "harness.records.store",
}
"""Records, and what describes them."""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[room] | {room}
    if path.parent == ROOT / "harness" / "commands":
        allowed |= {"slurm", "analysis"}
    foreign = {name for name in imports(path) if name.split(".")[0] in ROOMS - allowed}
    assert not foreign, f"{room} may not import {foreign}"


def test_analysis_reads_records_only():
    used = {
        name
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "analysis"
        for name in imports(path)
        if name.startswith("harness")
    }
    modules = {".".join(name.split(".")[:3]) for name in used}
    assert modules <= ANALYSIS_MAY_USE


def test_the_test_would_notice(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from harness.plans import plan\n")
    assert "harness.plans.plan" in set(imports(bad))
