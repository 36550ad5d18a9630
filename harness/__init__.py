"""The harness: from a plan of runs to one honest record per run. The way of the data is in `README.md`."""

from importlib.util import find_spec
from pathlib import Path


def _check_rooms() -> None:
    """`ImportError` if another package of one of our names comes first on the path: its code would run as ours."""
    here = Path(__file__).resolve().parents[1]
    for room in ("methods", "suites", "slurm", "analysis"):
        spec = find_spec(room)
        for folder in (spec.submodule_search_locations or [str(spec.origin)]) if spec else []:
            if Path(folder).resolve().parent != here:
                raise ImportError(
                    f"{folder} hides the package {room!r} of {here}: it comes first on Python's path. Start elsewhere, "
                    "take its folder out of PYTHONPATH, or give it another name"
                )


_check_rooms()
