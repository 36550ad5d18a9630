"""A short fault campaign; `make test-faults` runs the long one."""

import pytest

from harness.records.store import Store, read_record, read_stored
from harness.schema.record import StoredFile
from tests.examples import make_record, make_spec
from tests.faults.campaign import Campaign, why_no_mount
from tests.faults.dying import Moments, child, wait

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


def test_a_result_that_is_replaced_may_be_cut_off_anywhere(tmp_path):
    """At every moment of writing over a result with files, the old one or the new one is whole, in its place or kept
    aside, and a record in its place names whole files."""
    old, new = ({"predictions.safetensors": word, "weights.safetensors": 2 * word} for word in (b"old", b"new!"))

    def record(files, accuracy):
        return make_record(accuracy, files={name: StoredFile.of(content) for name, content in files.items()})

    moment, ends = 0, []
    while not ends or ends[-1] == "killed":
        moment += 1
        root = tmp_path / str(moment)
        Store(root).write(record(old, 50), old)

        def replace(root=root, moment=moment):
            Moments("any", moment).install()
            Store(root).write(record(new, 60), new)

        ends.append(wait(child(replace)))
        places = [path.parent for path in root.rglob("record.json")]
        whole = {read_record(folder / "record.json").metrics["test"].accuracy: folder for folder in places}
        assert whole.keys() <= {50, 60} and 50 in whole
        for accuracy, folder in whole.items():
            for name, content in (old if accuracy == 50 else new).items():
                assert read_stored(folder, read_record(folder / "record.json"), name) == content
        Store(root).write(record(new, 60), new)
        assert Store(root).complete(make_spec()).metrics["test"].accuracy == 60
    assert ends[-1] == "done" and len(ends) > 20


def test_a_full_disk_loses_nothing(campaign, disks):
    campaign.on_a_small_disk(0, kilobytes=24)
    check(campaign)
    assert campaign.tally.done["full disks"]


def test_a_read_only_folder_loses_nothing(campaign, disks):
    campaign.on_a_read_only_disk(0)
    check(campaign)
