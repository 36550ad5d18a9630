"""A short fault campaign; `make test-faults` runs the long one."""

import pytest

from tests.faults.campaign import Campaign, why_no_mount

METHODS = ("linear", "sct")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCTBENCH_CACHE", "")  # put back afterwards: the campaign has its own
        for module, name in (
            ("training.callbacks", "REPORT_EVERY_SECONDS"),
            ("execution.worker", "PROGRESS_EVERY_SECONDS"),
        ):
            patch.setattr(f"harness.{module}.{name}", 0.0)
        patch.setattr("harness.training.cost.LATENCY_SECONDS", 0.0)
        yield Campaign(tmp_path_factory.mktemp("faults"), seed=7, methods=METHODS)


@pytest.fixture
def disks(tmp_path):
    if reason := why_no_mount(tmp_path):
        pytest.skip(reason)


def check(campaign):
    print("\n".join(campaign.tally.lines()))
    assert campaign.tally.clean, campaign.tally.lines()


def test_killed_and_damaged_runs_end_as_undisturbed_ones(campaign):
    for number, spec in enumerate(campaign.specs):
        campaign.one_run(number, spec)
    check(campaign)
    assert campaign.tally.kills


def test_a_damaged_record_is_set_aside_and_done_again(campaign):
    (*_, spec) = campaign.specs
    campaign.finish(campaign.root / "spoilt", [spec])
    campaign.spoil(campaign.root / "spoilt", spec)
    check(campaign)


def test_executors_on_one_folder_do_every_run_once(campaign):
    campaign.together(0, count=2)
    check(campaign)


def test_a_full_disk_loses_nothing(campaign, disks):
    campaign.on_a_small_disk(0, kilobytes=24)
    check(campaign)
    assert campaign.tally.done["full disks"]


def test_a_read_only_folder_loses_nothing(campaign, disks):
    campaign.on_a_read_only_disk(0)
    check(campaign)
