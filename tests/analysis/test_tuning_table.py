"""Tuned runs in tables: one row per method whatever won where, what was chosen, and what finding it took."""

import dataclasses

from analysis.tables import all_tables
from analysis.tables.efficiency import efficiency_table
from analysis.tables.settings import tuning_table
from analysis.tables.tasks import task_table
from harness.schema.record import RunRecord, Trial, Tuning
from tests.examples import make_record, make_spec
from tests.table_records import TASKS, cells, only_set, recipe, records

SPACE = {"lr": [1e-3, 1e-2], "channels": [24, 48]}


def tuning(accuracies, seconds=1800.0):
    trials = [
        Trial(run_id=f"t{i}", setting={"lr": 1e-3, "channels": 24}, score=a, seconds=seconds / len(accuracies))
        for i, a in enumerate(accuracies)
    ]
    known = [a for a in accuracies if a is not None]
    chosen = accuracies.index(max(known)) if known else None
    return Tuning(budget=4, space=SPACE, trials=trials, chosen=chosen, seconds=seconds)


def tuned(method="sct", accuracies=(50.0, 60.0, None), seeds=(0, 1)):
    """Every task has another winner."""
    given = []
    for i, task in enumerate(TASKS):
        for seed in seeds:
            spec = make_spec(
                task=task,
                method=method,
                seed=seed,
                protocol="tuned",
                trials=4,
                searched=("channels", "lr"),
                recipe=recipe(lr=(1e-3, 1e-2)[i % 2]),
                config={"channels": (24, 48)[i // 2 % 2], "mode": "attn"},
            )
            given.append(make_record(spec=spec, accuracy=10.0 * i + seed, tuning=tuning(list(accuracies))))
    return given


def test_what_was_searched_makes_no_variants():
    table = task_table(only_set(tuned()))
    assert list(table.rows) == ["SCT"]
    assert "4 trials, or all there are where a method has fewer" in table.caption


def test_what_the_user_fixed_makes_variants_also_where_the_winners_agree():
    fixed = [
        dataclasses.replace(
            r, spec=dataclasses.replace(r.spec, searched=("lr",), config={"channels": 8, "mode": "attn"})
        )
        for r in tuned()
    ]
    assert set(only_set(tuned() + fixed).rows["label"]) == {"SCT", "SCT (channels=8)"}


def test_the_table_says_what_won_and_what_it_took():
    table = tuning_table(only_set(tuned()))
    assert list(table.rows) == [f"SCT, {task}" for task in TASKS]
    row = cells(table, "SCT, digits")
    assert row["", "chosen"].text == "channels=48, lr=0.001"
    assert [row["", name].value for name in ("val", "trials", "failed", "hours")] == [60.0, 3, 1, 0.5]


def test_where_every_trial_failed_nothing_was_chosen():
    spec = dataclasses.replace(tuned()[0].spec, method="lora")
    failed = RunRecord(
        spec=spec, method_title="LORA", status="failed", reason="all failed", tuning=tuning([None, None], 0.0)
    )
    row = cells(tuning_table(only_set([*tuned(), failed])), "LORA, photo_crops")
    assert row["", "chosen"].text == "none: all trials failed"
    assert not row["", "val"].is_number


def test_efficiency_counts_trials_and_seconds_only_where_something_was_tuned():
    row = cells(efficiency_table(only_set(tuned())), "SCT")
    assert [row["tuning a cell", name].value for name in ("trials", "seconds")] == [3, 1800]
    assert not [group for group, _ in cells(efficiency_table(only_set(records())), "SCT") if "tuning" in group]


def test_the_report_has_the_table_where_something_was_tuned():
    assert "tuning" in [table.name for table in all_tables(only_set(tuned()))]
    assert "tuning" not in [table.name for table in all_tables(only_set(records()))]
