"""The batch scripts, word for word."""

import sys
from pathlib import Path

import pytest

from slurm.planning import Array, report_array
from slurm.profile import Profile
from slurm.profile_file import make_profile, read_file
from slurm.schedulers import SCHEDULERS
from tests import tiny

HERE = Path(__file__).parent
script = SCHEDULERS["slurm"].script


@pytest.mark.parametrize("name", ["gpu", "preemptible"])
def test_scripts_are_as_they_were(name):
    profile = make_profile({"constraint": "a100"}, read_file(HERE.parents[1] / "slurm" / "profiles" / f"{name}.yaml"))
    array = Array(name="sub.0", jobs=tuple((run,) for run in tiny.specs(seeds=3)), parallel=2)
    texts = [
        script(array, profile, Path("/results/slurm/sub/0"), ["11", "12"]),
        script(report_array("sub", [array]), profile, Path("/results/slurm/sub/report"), ["13"]),
    ]
    text = "\n".join(texts).replace(sys.executable, "python")
    golden = HERE / "golden" / f"{name}.sh"
    assert text == golden.read_text()


def test_the_job_for_the_tables_has_its_own_limit_and_warning():
    text = script(report_array("sub", []), Profile(time=600, signal_delay=3600), Path("/results"), [])
    assert "--time=30\n" in text and "--signal=USR2@120\n" in text
