"""Energy: counters that wrap around, cannot be read, or belong to another GPU; sums that go on in another process."""

import dataclasses
import gc
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from harness import energy
from harness.energy import Counter, Meter, Unreadable, counters
from harness.errors import Interrupted
from harness.execution import worker
from harness.execution.worker import execute_run
from harness.training import cost
from harness.training.cost import EnergyMeter
from tests import tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def zone(root, name, kind, microjoules, span=65_532_610_987):
    """A folder as Linux shows one."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{kind}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


@pytest.fixture
def powercap(tmp_path):
    """Two packages, parts of them, and the whole board."""
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 65_532_000_000)
    zone(tmp_path, "intel-rapl:1:0", "dram", 4_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 4_000_000)
    return tmp_path


def test_packages_are_summed_and_may_wrap_around_once(powercap):
    meter = Meter(counters(CPU, powercap))
    assert (meter.source, meter.joules()) == ("rapl", 0.0)
    zone(powercap, "intel-rapl:0", "package-0", 7_500_000)
    assert meter.joules() == pytest.approx(2.5)
    zone(powercap, "intel-rapl:1", "package-1", 1_000_000)  # 0.610987 to the end, and one from there
    assert meter.joules() == pytest.approx(2.5 + 1.610987)
    for part in ("intel-rapl:0:0", "intel-rapl:2"):
        zone(powercap, part, (powercap / part / "name").read_text().strip(), 9_000_000)
    assert meter.joules() == pytest.approx(2.5 + 1.610987)


def test_after_a_time_in_which_a_counter_may_have_wrapped_twice_nothing_is_known(powercap, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=threading.Event().wait))
    meter = Meter(counters(CPU, powercap))
    now[0] += 65
    assert meter.joules() == 0.0
    now[0] += 66  # at 1000 W it would have been 66 kJ
    assert meter.joules() is None
    now[0] += 1
    assert meter.joules() is None


def test_a_meter_reads_in_the_background_for_as_long_as_it_is_held(powercap, monkeypatch):
    monkeypatch.setattr(energy, "SAMPLE_SECONDS", 0.001)
    read, enough = [], threading.Event()

    def count():
        read.append(1)
        if len(read) > 5:
            enough.set()
        return 1.0

    before = set(threading.enumerate())
    meter = Meter([Counter(source="rapl", read=count, span=65e3)])
    (thread,) = set(threading.enumerate()) - before
    assert enough.wait(60) and meter.joules() == 0.0
    del meter
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_what_cannot_be_read_is_absent(powercap, tmp_path):
    assert counters(CPU, tmp_path / "nowhere") == [] == counters(torch.device("meta"), powercap)
    one_of_two = powercap / "intel-rapl:1/energy_uj"
    one_of_two.unlink()
    one_of_two.mkdir()  # unlike a mode, it keeps root out too
    assert counters(CPU, powercap) == []
    one_of_two.rmdir()
    one_of_two.write_text("much")
    assert counters(CPU, powercap) == []
    assert Meter([]).joules() is None and Meter([]).source == ""


def test_a_counter_that_fails_later_makes_the_sum_unknown(powercap):
    meter = Meter(counters(CPU, powercap))
    (powercap / "intel-rapl:0/energy_uj").unlink()
    assert meter.joules() is None
    zone(powercap, "intel-rapl:0", "package-0", 9_000_000)
    assert meter.joules() is None


def test_without_a_driver_or_the_package_a_gpu_has_none(monkeypatch):
    import pynvml

    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlInit()
    assert counters(GPU) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert counters(GPU) == []


def test_a_gpu_is_found_by_its_uuid_and_counts_in_millijoules(monkeypatch):
    import pynvml

    uuids, millijoules = ["aa", "bb"], {"aa": 1_000, "bb": 7_000_000_000_000}

    def handle(uuid):
        if uuid.removeprefix("GPU-") not in millijoules:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid.removeprefix("GPU-")

    def total(handle):
        if millijoules[handle] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return millijoules[handle]

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(uuid=uuids[::-1][d.index or 0]))
    meter = Meter(counters(GPU))  # CUDA_VISIBLE_DEVICES=1,0: torch's first is the driver's second
    millijoules["bb"] += 12_345
    millijoules["aa"] += 999
    assert (meter.source, meter.joules()) == ("nvml", pytest.approx(12.345))
    millijoules["bb"] = None
    assert meter.joules() is None
    assert counters(GPU) == []  # too old for a counter
    uuids[1] = "a slice"
    assert counters(GPU) == []


@pytest.fixture
def given(monkeypatch):
    """The counters that a run finds from now on: one, which counts 2 J whenever it is read."""
    joules = iter(range(0, 10**6, 2))
    found = [Counter(source="nvml", read=lambda: float(next(joules)))]
    monkeypatch.setattr(cost.energy, "counters", lambda device: found)
    return found


def stopped(spec, setup, monkeypatch):
    def report(progress):
        if getattr(progress, "step", None) == 4:
            worker.STOP.request("test")

    with pytest.raises(Interrupted):
        execute_run(spec, setup, report)
    monkeypatch.setattr(worker.STOP, "reason", "")


def test_a_record_says_what_its_run_took(setup, given):
    (spec,) = tiny.specs(["linear"])
    record = execute_run(spec, setup)
    assert (record.cost.energy_joules, record.cost.energy_source) == (2.0, "nvml")  # read before and after
    given.clear()
    record = execute_run(spec, dataclasses.replace(setup, root=setup.root / "unknown"))
    assert (record.cost.energy_joules, record.cost.energy_source) == (None, "")


def test_a_resumed_run_took_the_sum_of_its_parts(setup, given, monkeypatch):
    (spec,) = tiny.specs(["linear"])
    stopped(spec, setup, monkeypatch)
    assert execute_run(spec, setup).cost.energy_joules == 4.0  # before and after each part


@pytest.mark.parametrize("unknown", ["first", "last", "another"])
def test_a_sum_of_which_a_part_is_unknown_is_unknown(setup, given, monkeypatch, unknown):
    (spec,) = tiny.specs(["linear"])
    known = list(given)
    other = [dataclasses.replace(known[0], source="rapl")]
    given[:] = [] if unknown == "first" else known
    stopped(spec, setup, monkeypatch)
    given[:] = {"first": known, "last": [], "another": other}[unknown]
    record = execute_run(spec, setup)
    assert record.status == "complete"
    assert (record.cost.energy_joules, record.cost.energy_source) == (None, "")


def test_a_meter_that_cannot_be_restarted_is_unknown(given):
    meter = EnergyMeter(CPU)

    def fail():
        raise Unreadable("gone")

    given[0] = dataclasses.replace(given[0], read=fail)
    meter.load_state_dict({"energy_joules": 5.0, "energy_source": "nvml"})
    assert meter.fields() == {"energy_joules": None, "energy_source": ""}
