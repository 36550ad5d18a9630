"""On real daemons: what a user's suite meets on a cluster."""

import pytest
import tiny
from slurm_helpers import ended, send, standing, wait

from harness.store import Store

pytestmark = pytest.mark.slurm


def test_runs_are_done_as_here_and_the_tables_follow(slurm, data, undisturbed, tmp_path):
    specs = tiny.specs(["linear", "lora"], seeds=2, tasks=tiny.TASKS)
    setup = tiny.setup(tmp_path, data)
    submission = send(setup, specs)
    assert [len(array.tasks) for array in submission.arrays] == [2, 0]
    wait(lambda: ended(tmp_path))
    assert standing(tmp_path) == {"complete": 8}
    for spec in specs:
        record = Store(tmp_path).read(spec)
        assert tiny.lasting(record) == undisturbed(spec)
        job = record.environment["slurm"]
        assert job["array_job"] == submission.arrays[0].job
        assert job["node"] in ("n1", "n2", "n3", "n4") and job["restarts"] == 0
        assert record.environment["code_changed"] is False
        assert record.environment["code_at_submission"] == submission.code
    wait(lambda: (tmp_path / "report" / "index.html").is_file())
