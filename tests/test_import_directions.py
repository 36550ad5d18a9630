"""Rooms may import only what `README.md` says: nothing downstream is imported upstream."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOOR = "sctbench"
ROOMS = {"methods", "suites", "harness", "slurm", "analysis"}
MAY_IMPORT = {
    "suites": set(),
    "methods": set(),
    "harness": {"methods", "suites"},
    "slurm": {"harness", "suites"},
    "analysis": {"harness", "suites"},
}
ANALYSIS_MAY_USE = {
    "harness.errors",
    "harness.schema.metrics",
    "harness.schema.protocol",
    "harness.schema.spec",
    "harness.schema.record",
    "harness.records.index",
    "harness.records.pack",
    "harness.records.predictions",
    "harness.records.store",
}
"""Records, and what describes them."""

FLOORS = {
    "harness": [
        {"errors", "tensor_header"},
        {"paths", "sources", "tensor_files", "schema"},
        {"children", "device", "energy", "lease", "terminal"},
        {"environment", "models", "records"},
        {"plans"},
        {"data"},
        {"training"},
        {"execution", "bench"},
        {"commands"},
    ],
    "analysis": [
        {"columns", "comparability", "metric_text", "statistics"},
        {"frame", "paired"},
        {"tables", "index"},
        {"comparison", "literature", "render", "sources"},
        {"figures", "page_tables", "verify"},
        {"page"},
        {"report", "shown"},
        {"commands"},
    ],
    "slurm": [
        {"job_payload", "profile", "report_job", "submissions"},
        {"planning", "job_runner"},
        {"schedulers"},
        {"profile_file", "status", "submit"},
        {"actions"},
    ],
    "suites": [
        {"base"},
        {"corruptions", "folders", "packages", "yaml_lines"},
        {"demo", "load", "own", "released_recipes"},
        {"demo_twins"},
    ],
}
"""The folders and modules of a room, from the ground up: each may import what stands on a floor below its own."""


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


def test_nothing_imports_the_door_which_stands_on_top():
    assert not {path for path in FILES for name in imports(path) if name.split(".")[0] == DOOR}


def test_analysis_reads_records_only():
    used = {
        name
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "analysis"
        for name in imports(path)
        if name.startswith("harness")
    }
    assert not {name for name in used if not any(f"{name}.".startswith(f"{module}.") for module in ANALYSIS_MAY_USE)}


@pytest.mark.parametrize("room", FLOORS)
def test_within_a_room_nothing_imports_what_stands_beside_or_above_it(room):
    floor_of = {name: number for number, floor in enumerate(FLOORS[room]) for name in floor}
    upward = set()
    for path in (path for path in FILES if path.is_relative_to(ROOT / room)):
        own = path.relative_to(ROOT / room).parts[0].removesuffix(".py")
        used = {name.split(".")[1] for name in imports(path) if name.startswith(f"{room}.")}
        if own != "__init__":
            upward |= {(own, name) for name in used - {own} if floor_of[name] >= floor_of[own]}
    assert not upward
    assert {
        p.name.removesuffix(".py") for p in (ROOT / room).iterdir() if list(p.rglob("*.py")) or p.suffix == ".py"
    } - {"__init__"} == set(floor_of)


def test_the_test_would_notice(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from harness.plans import plan\n")
    assert "harness.plans.plan" in set(imports(bad))
