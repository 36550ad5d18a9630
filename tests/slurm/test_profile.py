"""Cluster profiles: files, flags, and what is refused with file and line."""

from pathlib import Path

import pytest

from harness.errors import USER_ERRORS, HarnessError
from slurm.profile import Profile
from slurm.profile_file import make_profile, minutes, read_file
from slurm.schedulers import SCHEDULERS
from slurm.schedulers.slurm import SHORT_MINUTES

PROFILES = sorted((Path(__file__).parents[2] / "slurm" / "profiles").glob("*.yaml"))


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_file(path)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_examples_are_profiles(path):
    made = make_profile({}, read_file(path))
    assert made.partition and made.gpus == 1 and not SCHEDULERS[made.scheduler].warnings(made)
    assert Profile.from_dict(made.as_dict()) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:00", 30), ("4:00:00", 240), ("0:10:30", 11), ("1-12", 2160), ("1-0:30", 1470), (" 5 ", 5)],
)
def test_time_limits_are_written_as_slurm_takes_them(text, expected):
    assert minutes(text) == expected


def test_a_files_time_is_not_read_in_base_60(tmp_path):
    assert make_profile({}, written(tmp_path, "time: 4:00:00\n")).time == 240


def test_names_are_what_is_written(tmp_path):
    made = make_profile({}, written(tmp_path, "account: 0042\npartition: on\nconstraint: 2080\n"))
    assert (made.account, made.partition, made.constraint) == ("0042", "on", "2080")


def test_flags_beat_the_file(tmp_path):
    file = written(tmp_path, "partition: a\ncpus: 2\nsetup: [module load x]\n")
    made = make_profile({"partition": "b", "time": "1:00:00", "scheduler": "local"}, file)
    assert (made.partition, made.cpus, made.time, made.setup) == ("b", 2, 60, ("module load x",))
    assert (made.scheduler, make_profile({}, file).scheduler) == ("local", "slurm")
    assert make_profile({"time": 90}).time == 90
    with pytest.raises(HarnessError, match="partitoin='a': a profile has no such key"):
        make_profile({"partitoin": "a"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpus: 2\npartitoin: a\n", "mine.yaml:2: unknown key 'partitoin'. Did you mean 'partition'"),
        ("gpus: 1\ncpus: many\n", "mine.yaml:2: cpus='many' must be int"),
        ("gpus: true\n", "mine.yaml:1: gpus=True must be int"),
        ("gpus: 2\n", "mine.yaml:1: gpus=2 must be 0 or 1"),
        ("gpus: 1\nsbatch:\n  nice: 0100\n", "mine.yaml:3: '0100' is octal to YAML"),
        ("sbatch: {begin: 16:00}\n", "mine.yaml:1: '16:00' is a number in base 60"),
        ("sbatch: {exclusive: yes}\n", "mine.yaml:1: 'yes' is true or false to YAML"),
        ("setup: module load x\n", "mine.yaml:1: setup='module load x' must be list"),
        ("setup: [1]\n", "must be a list of shell lines"),
        ("time: soon\n", "mine.yaml:1: time='soon' must be minutes, hours:minutes:seconds or days-hours"),
        ("mem: lots\n", "mine.yaml:1: mem='lots' must be like 500MB or 32GB"),
        ("time: 2\n", "mine.yaml:1: time=2 must be at least 3 minutes"),
        ("time: 5\nsignal_delay: 300\n", "mine.yaml:2: signal_delay=300 must be from 30 seconds to the time limit"),
        ("sbatch:\n  time: 5\n", "mine.yaml:1: sbatch='time' cannot be set: use `time`"),
        ("cpus: 2\nsbatch: {gpus_per_node: 2}\n", "mine.yaml:2: sbatch='gpus_per_node' cannot be set: use `gpus`"),
        ("sbatch: {job-name: mine}\n", "sbatch='job-name' cannot be set: jobs depend on it"),
        ("cpus: 2\nscheduler: pbs\n", "mine.yaml:2: scheduler='pbs' must be local or slurm"),
        ("- a\n", "mine.yaml:1: a profile is a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, text, message):
    with pytest.raises(USER_ERRORS) as error:
        make_profile({}, written(tmp_path, text))
    assert message in str(error.value)


def test_short_limits_come_with_a_warning():
    slurm = SCHEDULERS["slurm"]
    (warning,) = slurm.warnings(Profile(time=SHORT_MINUTES))
    assert "every preemption counts as a time-out" in warning
    assert not slurm.warnings(Profile(time=SHORT_MINUTES + 1))
