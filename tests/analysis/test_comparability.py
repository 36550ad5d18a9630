"""Records that differ in something: refused with what differs, in a table of their own, or noted."""

import dataclasses

import pytest

from analysis.frame import comparable_sets
from analysis.tables.tasks import task_table
from harness.schema.record import Fingerprint, Trial, Tuning
from tests.examples import make_record, make_spec
from tests.table_records import only_set, records

USUAL = Fingerprint(lists="l", files="d", sizes={"train": 160, "test": 600}, pixels="p")


def on_data(given, **changes):
    return [dataclasses.replace(record, data=dataclasses.replace(USUAL, **changes)) for record in given]


def computed(given, precision, asked="auto"):
    """The records as a device computed them whose precision was left to it, or asked for."""
    recipe = dataclasses.replace(given[0].spec.recipe, precision=asked)
    specs = [dataclasses.replace(record.spec, recipe=recipe) for record in given]
    environment = {"device": "cpu", "precision": precision} if precision else {}
    return [dataclasses.replace(r, spec=s, environment=environment) for r, s in zip(given, specs, strict=True)]


def test_two_precisions_never_stand_in_one_table():
    given = [*computed(records(), "float32"), *computed(records("lora"), "float32"), *computed(records(seed=1), "bf16")]
    sets = comparable_sets(given)
    assert [(chosen.key["precision"], chosen.apart) for chosen in sets] == [("bf16", "bf16"), ("float32", "float32")]
    assert [set(chosen.rows["label"]) for chosen in sets] == [{"SCT"}, {"SCT", "LORA"}]
    for chosen in sets:
        assert f"precision {chosen.key['precision']}. Device: cpu." in task_table(chosen).caption


def test_a_run_with_its_precision_named_and_left_to_the_device_is_one_run_that_counts_once():
    old, new = computed(records(), "float32"), computed(records(), "float32", asked="float32")
    chosen = only_set([*old, *new])
    assert list(chosen.rows["run_id"]) == [record.spec.run_id for record in new]
    assert {run.reason for run in chosen.left_out} == {"the same run as one that is in"} and len(chosen.left_out) == 5
    assert list(task_table(chosen).rows) == ["SCT"]
    failing = [dataclasses.replace(record, status="failed", metrics={}) for record in new]
    assert list(only_set([*old, *failing]).rows["run_id"]) == [record.spec.run_id for record in old]


def test_a_run_that_failed_before_its_precision_was_known_stands_with_the_others():
    killed = dataclasses.replace(computed(records("lora")[:1], "")[0], status="failed", metrics={}, reason="killed")
    (chosen,) = comparable_sets([*computed(records(), "bf16"), *computed(records("lora")[1:], "bf16"), killed])
    assert sorted(chosen.rows["label"].unique()) == ["LORA", "SCT"] and len(chosen.rows) == 10


def stranger(**changes):
    (record,) = on_data([make_record(spec=make_spec(task="digits", method="lora"))], **changes)
    return record


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lists": "m"}, "lists differ"),
        ({"files": "e"}, "images differ"),
        ({"pixels": "q"}, "images differ"),
        (
            {"lists": "m", "files": "e", "sizes": {"train": 200, "val": 40, "test": 600}},
            "lists differ (train 200 instead of 160, val 40 instead of 0), images differ",
        ),
    ],
)
def test_other_data_are_left_out_and_the_caption_says_what_differs(changes, words):
    other = stranger(**changes)
    chosen = only_set([*on_data(records()), *on_data(records("full")), other])
    assert chosen.left_out == [(other.spec.run_id, "LORA", "digits", words)]
    table = task_table(chosen)
    assert "LORA" not in table.rows
    assert f"1 run of LORA on digits ({words})" in table.caption


def test_records_that_know_no_pixels_are_compared_by_what_they_have():
    """As those of schema 2: with either, but the two that know them never together."""
    old, other = stranger(pixels=""), stranger(pixels="q")
    assert only_set([*on_data(records()), old]).left_out == []
    chosen = only_set([*on_data(records()), *on_data(records("full")), old, other])
    assert [(run.method, run.reason) for run in chosen.left_out] == [("LORA", "images differ")]


def test_many_runs_that_are_left_out_make_a_short_caption():
    other = [r for s in range(60) for r in on_data(records("lora", seed=s), files="e")]
    usual = [r for s in range(61) for r in on_data(records(seed=s))]
    caption = task_table(only_set(usual + other)).caption
    assert "300 runs of LORA on 5 tasks (images differ); each in left_out.csv" in caption
    kinds = [on_data(records(name), files="e")[0] for name in "abcdef"]
    assert "6 runs of 6 methods on photo_crops; each in left_out.csv" in task_table(only_set(usual + kinds)).caption


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocessing": "56px-squash-bicubic-half"},
        {"backbone": dataclasses.replace(make_spec().backbone, digest="cd" * 32)},
        {"protocol": "tuned", "trials": 4},
    ],
)
def test_other_preprocessing_checkpoint_or_budget_is_another_table(changes):
    base = {"protocol": "tuned", "trials": 8} if "trials" in changes else {}
    assert len(comparable_sets(records(**base) + records("lora", **changes))) == 2


def with_code(given, commit, dirty=False):
    return [dataclasses.replace(r, environment={"code": {"commit": commit, "dirty": dirty}}) for r in given]


def test_other_code_is_noted_not_refused():
    chosen = only_set(with_code(records(), "a" * 40) + with_code(records("lora")[:2], "b" * 40, dirty=True))
    assert chosen.left_out == []
    assert chosen.notes == ["2 code states: aaaaaaaa (5 runs), bbbbbbbb with changes (2 runs)"]
    assert f"Not the same in all records: {chosen.notes[0]}." in task_table(chosen).caption


def test_the_same_code_and_many_codes_are_not_spelt_out():
    assert only_set(with_code(records(), "a" * 40)).notes == []
    many = [with_code([record], str(i) * 40)[0] for i, record in enumerate(records())]
    assert only_set(many).notes == ["5 code states"]


def tuned(accuracy, seed):
    trial = Trial(run_id="a1", setting={"lr": 1e-3}, score=accuracy, seconds=2.0)
    tuning = Tuning(budget=8, space={"lr": [1e-3]}, trials=[trial], chosen=0, seconds=2.0)
    spec = make_spec(protocol="tuned", trials=8, searched=("lr",), seed=seed)
    return make_record(spec=spec, tuning=tuning)


def test_seeds_of_one_cell_that_other_trials_decided_are_left_out():
    given = [tuned(50.0, 0), tuned(50.0, 1), tuned(60.0, 2)]
    chosen = only_set(given)
    assert chosen.left_out == [(given[2].spec.run_id, "SCT", "digits", "settings chosen by other trials")]
    assert len(chosen.rows) == 2
