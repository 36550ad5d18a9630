"""Errors of file servers, disks and networks: tried again, no verdict on anything, and nothing unread is deleted."""

import dataclasses
import errno
import os
import textwrap
from unittest import mock

import pytest
import torch

from harness import device, lease
from harness.data import arrays
from harness.errors import DataError, Interrupted
from harness.execution import local, worker
from harness.execution.worker import execute_run
from harness.plans import plan, stages, tuning
from harness.records import index, status
from harness.records.store import Store
from harness.schema import failures
from harness.training import run
from methods import registry
from tests import tiny

UNREADABLE = "/proc/self/mem"
"""Opens, and gives EIO when it is read."""

TRIED = ("ESTALE", "EIO", "ETIMEDOUT", "EAGAIN", "EBUSY", "EINTR", "ENOLCK", "EREMOTEIO", "ECONNRESET", "EHOSTDOWN")


@pytest.fixture
def setup(setup, monkeypatch):
    """The pauses before further tries are short."""
    io = dataclasses.replace(failures.CLASSES["io"], pauses=(0.01, 0.02))
    monkeypatch.setitem(failures.CLASSES, "io", io)
    return setup


@pytest.fixture(autouse=True)
def forgotten():
    """Each test has a method of the same name in a file of its own."""
    with mock.patch.dict(registry._external):
        yield


def method_that_fails(folder, times, number="ESTALE"):
    """A probe whose file of its own fails so often, whatever the process."""
    left = folder / "left"
    left.write_text(str(times))
    (folder / "flaky.py").write_text(
        textwrap.dedent(
            f"""
            import errno, os
            from pathlib import Path
            from methods.base import Attachment
            from methods.linear import Linear

            class Flaky(Linear):
                \"\"\"The probe.\"\"\"
                name, title, search_space = "flaky", "Flaky", {{"lr": (1e-6, 1e-3)}}

                def attach(self, backbone, context):
                    left = Path({str(left)!r})
                    if (count := int(left.read_text())) > 0:
                        left.write_text(str(count - 1))
                        raise OSError(errno.{number}, os.strerror(errno.{number}), "/nfs/bases.npy")
                    return Attachment()
            """
        )
    )
    return f"{folder / 'flaky.py'}:Flaky"


def tuned(reference):
    return tiny.selection(methods=[reference], protocol="tuned", trials=2)


@pytest.mark.parametrize("name", TRIED)
def test_each_is_a_class_of_its_own_whatever_carries_it(name):
    plain = OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    library = RuntimeError(f"unable to read: {plain.strerror} (os error {plain.errno})")
    for error in (plain, library, wrapped(plain)):
        assert failures.kind_of(error).name == "io"
    assert failures.kind_of(FileNotFoundError(errno.ENOENT, "bases.npy")).name == "data"
    assert failures.kind_of(ZeroDivisionError("a defect")).name == "unexpected"


def wrapped(error):
    try:
        try:
            raise error
        except OSError as inner:
            raise DataError(f"list: cannot be read ({inner.strerror})") from None
    except DataError as outer:
        return outer


def test_a_trial_that_meets_one_passing_error_decides_as_an_undisturbed_one(setup, tmp_path):
    """In real worker processes."""
    chosen = tuned(method_that_fails(tmp_path, times=1))
    setup = dataclasses.replace(setup, method_files=[f"{tmp_path / 'flaky.py'}:Flaky"])
    found = stages.stage(chosen, Store(setup.root).read)
    outcome = local.execute(found.ready, [setup], lambda spec, message: None, found.blocked)
    (final,) = plan.finals(chosen)
    record = Store(setup.root).read(final.spec(Store(setup.root).read))
    assert (record.status, outcome.not_started) == ("complete", 0)
    assert all(trial.score is not None for trial in record.tuning.trials)


def test_one_that_stays_is_no_verdict_and_the_final_waits(setup, tmp_path):
    chosen = tuned(method_that_fails(tmp_path, times=3))
    first, second = plan.expand(chosen)
    record = execute_run(first, setup)
    assert (record.failure.kind, (tmp_path / "left").read_text()) == ("io", "0")
    execute_run(second, setup)
    (final,) = plan.finals(chosen)
    assert final.spec(Store(setup.root).read) is None
    assert first in stages.stage(chosen, Store(setup.root).read).ready
    assert execute_run(first, setup).status == "complete"
    assert final.spec(Store(setup.root).read) is not None


def test_memory_that_others_take_is_no_verdict(setup, monkeypatch):
    (spec,) = tiny.specs(["linear"])

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(run.evaluation, "evaluate", fail)
    assert execute_run(spec, setup).failure.kind == "memory_shared"
    monkeypatch.setattr(device, "is_shared", lambda _: False)
    assert execute_run(spec, setup).failure.kind == "memory"
    assert "memory_shared" in tuning.INCONCLUSIVE and "memory" not in tuning.INCONCLUSIVE


def stopped(setup, spec):
    """The state of a run that was stopped at its fourth step."""
    with pytest.raises(Interrupted):
        execute_run(
            spec, setup, lambda progress: worker.STOP.request("test") if getattr(progress, "step", None) == 4 else None
        )
    worker.STOP.reason = ""
    return Store(setup.root).folder(spec) / "state" / "000000004.safetensors"


def test_a_training_state_that_cannot_be_read_is_kept(setup):
    (spec,) = tiny.specs()
    state = stopped(setup, spec)
    aside = state.with_suffix(".aside")
    state.rename(aside)
    state.symlink_to(UNREADABLE)
    assert execute_run(spec, setup).failure.kind == "io"
    assert state.is_symlink()
    aside.replace(state)
    assert execute_run(spec, setup).environment["resumed_at_steps"] == [4]


def test_memory_that_ends_while_a_state_is_read_costs_no_state(setup, monkeypatch):
    (spec,) = tiny.specs()
    state = stopped(setup, spec)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("harness.tensor_files._rebuild", full)
        assert execute_run(spec, setup).failure.kind == "memory_shared"
    assert state.is_file()


def test_a_record_that_cannot_be_read_is_neither_done_again_nor_replaced(setup):
    (spec,) = tiny.specs(["linear"])
    execute_run(spec, setup)
    path = Store(setup.root).folder(spec) / "record.json"
    aside = path.rename(path.with_name("aside"))
    path.symlink_to(UNREADABLE)
    steps = []
    assert (execute_run(spec, setup, steps.append).failure.kind, steps) == ("io", [])
    assert path.is_symlink() and not (setup.root / "corrupt").exists()
    with pytest.raises(OSError):
        Store(setup.root).read(spec)
    (found,) = status.of_folder(setup.root)
    assert (found.state, found.reason) == ("bad", "cannot be read now: Input/output error")
    path.unlink()
    aside.rename(path)
    assert execute_run(spec, setup).status == "complete"


def test_no_index_remembers_what_could_not_be_read(setup, monkeypatch):
    from analysis import index as table

    (spec,) = tiny.specs(["linear"])
    execute_run(spec, setup)

    def stale(*_, **__):
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_text", stale)
        (entry,) = index.scan(setup.root).values()
        frame, rejected = table.load(setup.root)
    assert (entry.state, len(frame), len(rejected)) == ("bad", 0, 1)
    (entry,) = index.scan(setup.root).values()
    frame, rejected = table.load(setup.root)
    assert (entry.state, len(frame), len(rejected)) == ("complete", 1, 0)


def test_a_decoded_array_that_cannot_be_read_is_not_built_over(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    (spec,) = tiny.specs(["linear"])
    execute_run(spec, setup)
    for path in arrays.folder().glob("*.npy"):
        path.unlink()
        path.symlink_to(UNREADABLE)
    second = dataclasses.replace(setup, root=tmp_path / "second")
    assert execute_run(spec, second).failure.kind == "io"
    assert all(path.is_symlink() for path in arrays.folder().glob("*.npy"))


def test_a_lease_that_cannot_be_read_is_held_by_somebody(tmp_path):
    (tmp_path / lease.LEASE_NAME).symlink_to(UNREADABLE)
    assert not lease.is_stale(lease.read(tmp_path))
    with pytest.raises(OSError):
        lease.acquire(tmp_path)
    assert (tmp_path / lease.LEASE_NAME).is_symlink()


def test_a_heartbeat_that_meets_a_passing_error_loses_no_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    with lease.acquire(tmp_path) as held:

        def fail(*_):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("harness.lease.os.fstat", fail)
            held._end.wait(0.1)
            held.check()
    assert not (tmp_path / lease.LEASE_NAME).exists()


def test_a_lease_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    with lease.acquire(tmp_path) as held:
        assert held.is_ours()
        with pytest.raises(lease.Taken, match=f"process {os.getpid()}"):
            lease.acquire(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_named(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))

    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    record = execute_run(*tiny.specs(["linear"]), setup)
    assert record.failure.kind == "file_system" and "file_system" in tuning.INCONCLUSIVE
