"""The sources that this process runs, as one digest: what is done with others is not the same."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.errors import HarnessError

ROOMS = ("harness", "methods", "suites")
"""Packages whose code and YAML files decide results."""

ALL_ROOMS = (*ROOMS, "analysis", "slurm")


def _folders(room: str) -> list[Path]:
    """Where this process imports a room from: another folder of that name may come first on the path."""
    spec = find_spec(room)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


@cache
def source_digest(rooms: tuple[str, ...] = ROOMS) -> str:
    """Digest of the code that decides results, as this process imports it; the same on every machine, with git or
    without."""
    sha = hashlib.sha256()
    for folder in (folder for room in rooms for folder in _folders(room)):
        for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def check_sources(expected: str, rooms: tuple[str, ...] = ROOMS) -> None:
    """`HarnessError` unless this process imports the very sources that the one which started it had imported."""
    if source_digest(rooms) != expected:
        where = ", ".join(f"{room} from {folder}" for room in rooms for folder in _folders(room))
        raise HarnessError(
            f"other sources ({source_digest(rooms)}: {where}) than those of the command that started this process "
            f"({expected}): they were changed since, or other ones come first on its path (PYTHONPATH?). "
            "Give the command again"
        )


source_digest()  # now, while they are imported: what lies there later may be other code than what this process runs
