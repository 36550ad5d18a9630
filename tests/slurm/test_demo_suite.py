"""The demo suite on real daemons, as a user submits it: 7 methods x 5 tasks x 2 seeds, short recipe, no shortcuts."""

import time
from pathlib import Path

import pandas as pd
import pytest

from harness.records.store import read_record
from tests import tiny
from tests.command import sctbench
from tests.slurm_helpers import ended, standing, wait

pytestmark = pytest.mark.slurm_demo

WHAT = [
    Path(__file__).parents[2] / "suites/experiments/demo.yaml",
    "--seeds",
    "2",
    "--recipe",
    "epochs=1,precision=float32",
]
SEVEN_JOBS = ["--gpus", "0", "--cpus", "1", "--time", "60", "--parallel", "2", "--runs-per-job", "10"]


def outcomes(root):
    """What every record of a folder says that does not depend on where and how fast it was made."""
    records = [read_record(path) for path in sorted((root / "results" / "runs").glob("*/*/*/record.json"))]
    return {record.spec.run_id: tiny.lasting(record) for record in records}


def table(root):
    """The suite's table without the seconds."""
    (path,) = (root / "results" / "report").glob("*/tasks.csv")
    return pd.read_csv(path).drop(columns=["seconds", "seconds sd", "seconds note"])


def test_seventy_runs_give_the_records_and_the_table_of_a_local_execution(slurm, tmp_path, capsys):
    there, here = tmp_path / "slurm", tmp_path / "local"
    there.mkdir()
    here.mkdir()
    begun = time.monotonic()
    sent = sctbench("submit", *WHAT, *SEVEN_JOBS, cwd=there)
    assert "70 to submit" in sent
    submitted = time.monotonic() - begun
    wait(lambda: ended(there / "results"), timeout=3000)
    wait((there / "results" / "report" / "index.html").is_file)
    took = time.monotonic() - begun
    assert standing(there / "results") == {"complete": 70}
    assert "70 complete" in sctbench("status", cwd=there)
    sctbench("run", *WHAT, cwd=here)
    sctbench("report", cwd=here)
    assert len(outcomes(here)) == 70
    assert outcomes(there) == outcomes(here)
    pd.testing.assert_frame_equal(table(there), table(here))
    with capsys.disabled():
        print(
            f"\n70 runs: submitted in {submitted:.1f} s, complete and reported after {took:.0f} s, equal to local ones"
        )
