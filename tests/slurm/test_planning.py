"""Runs to jobs to arrays: nothing lost, nothing twice, limits kept."""

import dataclasses

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.plans.tuning import TunedRun, representative_spec
from slurm import planning, submit
from slurm.planning import arrays, deal, estimate, key_of, pack, report_array, shares, too_long
from slurm.profile import Profile
from tests import tiny

HOUR = Profile(time=60)
"""1740 seconds of runs in a job: half of its time, less the start."""


def runs(seeds=4):
    return tiny.specs(["linear", "lora"], seeds=seeds, tasks=tiny.TASKS)


def sizes(jobs):
    return [len(job) for job in jobs]


def test_runs_that_share_data_share_a_job():
    jobs = pack(runs(), lambda run: 1.0, HOUR)
    assert sizes(jobs) == [8, 8]
    assert [{run.task for run in job} for job in jobs] == [{"first"}, {"second"}]


def test_a_job_is_filled_to_half_its_time_limit():
    assert sizes(pack(runs(), lambda run: 600.0, HOUR)) == [2, 2, 2, 2] * 2
    assert sizes(pack(runs(), lambda run: 5000.0, HOUR)) == [1] * 16
    assert sizes(pack(runs(), lambda run: None, HOUR)) == [1] * 16


def test_the_user_may_say_how_many_runs_a_job_does():
    assert sizes(pack(runs(), lambda run: None, dataclasses.replace(HOUR, runs_per_job=3))) == [3, 3, 2] * 2


def test_runs_longer_than_the_limit_are_named():
    long = runs()[0]
    assert too_long(runs(), lambda run: 3599.0 if run == long else 10.0, HOUR) == [long]


def test_estimates_follow_the_device():
    (run,) = tiny.specs(["linear"])
    assert estimate(lambda run: 1e15, Profile())(run) == planning.RUN_SECONDS + 10
    assert estimate(lambda run: 1e15, Profile(tflops=10))(run) == planning.RUN_SECONDS + 100
    assert estimate(lambda run: 1e12, Profile(gpus=0))(run) == planning.RUN_SECONDS + 20
    assert estimate(lambda run: None, Profile())(run) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(count=st.integers(0, 60), limit=st.integers(1, 25), parallel=st.none() | st.integers(1, 20))
def test_every_job_is_in_one_array_and_the_limits_hold(count, limit, parallel):
    (run,) = tiny.specs(["linear"])
    jobs = [(dataclasses.replace(run, seed=seed),) for seed in range(count)]
    planned = arrays("x", [jobs], parallel, limit)
    assert [job for array in planned for job in array.jobs] == jobs
    assert all(len(array.jobs) <= limit for array in planned)
    assert len({array.name for array in planned}) == len(planned)
    if parallel is not None:
        assert all(array.parallel >= 1 for array in planned)
        free = [array for array in planned if not array.after]  # these may run side by side; each other waits for one
        assert sum(array.parallel for array in free) <= parallel


def test_parallelism_is_shared_over_the_chunks():
    assert shares(10, 3) == [4, 3, 3]
    assert shares(2, 3) == [1, 1, 1]
    assert shares(None, 2) == [None, None]


def test_with_more_arrays_than_jobs_at_a_time_the_later_wait():
    jobs = [(run,) for run in runs()]
    planned = arrays("x", [jobs], 2, 4)
    assert [array.after for array in planned] == [(), (), ("x.0",), ("x.1",)]


def test_stages_wait_for_the_one_before_and_for_jobs_of_earlier_submissions():
    jobs = [(run,) for run in runs()]
    planned = arrays("x", [jobs[:4], jobs[4:6]], None, 2, ["17"])
    assert [(a.name, a.after, a.after_jobs) for a in planned] == [
        ("x.0", (), ()),
        ("x.1", (), ()),
        ("x.2", ("x.0", "x.1"), ("17",)),
    ]
    (only,) = arrays("x", [[], jobs[:1]], None, 2, ["17"])
    assert (only.after, only.after_jobs) == ((), ("17",))
    assert report_array("x", planned).after == ("x.0", "x.1", "x.2")


def test_on_this_machine_short_runs_are_dealt_to_as_many_lanes_as_asked_for():
    profile = dataclasses.replace(HOUR, parallel=3, scheduler="local")
    (array,) = submit.make_plan(submit.Missing(ready=runs(2)), lambda run: 1.0, profile, 1000).arrays
    assert sizes(array.jobs) == [3, 3, 2]


def test_hours_count_the_start_of_every_job():
    profile = dataclasses.replace(HOUR, runs_per_job=2)
    made = submit.make_plan(submit.Missing(ready=runs(2)), lambda run: 300.0, profile, 1000)
    assert made.hours() == (8 * 300 + 4 * planning.START_SECONDS) / 3600


def test_lanes_hold_all_runs_once():
    jobs = pack(runs(), lambda run: 600.0, HOUR)
    lanes = deal(jobs, 3)
    assert len(lanes) == 3
    assert sorted(run.run_id for lane in lanes for run in lane) == sorted(run.run_id for run in runs())
    assert deal(jobs[:1], 3) == jobs[:1]


def test_a_run_that_its_trials_decide_has_a_lasting_key():
    trials = tuple(tiny.specs(["lora"], seeds=2, protocol="validation"))
    final = TunedRun(trials=trials, seed=3, budget=2, space={"lr": (1e-3, 1e-2)})
    assert key_of(final) == key_of(dataclasses.replace(final))
    assert key_of(final) != key_of(dataclasses.replace(final, seed=4))
    assert (representative_spec(final).protocol, representative_spec(final).seed) == ("tuned", 3)
