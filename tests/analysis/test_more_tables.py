"""Few-shot, domain, efficiency, settings, ablation and significance tables; odd records."""

import dataclasses

import pytest

from analysis.frame import comparable_sets
from analysis.render.markdown import to_markdown
from analysis.render.text import marked_rows
from analysis.tables import TableOptions, all_tables
from analysis.tables.efficiency import efficiency_table
from analysis.tables.settings import ablation_axes, ablation_table, settings_table
from analysis.tables.significance import significance_table
from analysis.tables.tasks import result_tables, task_table
from tests.examples import make_record, make_spec
from tests.table_records import TASKS, cells, costed, domain, failed, few_shot, only_set, recipe, records, with_holes

FEW_SHOT_TASKS = ["food101", "stanford_cars", "oxford_flowers102", "oxford_pets", "fgvc_aircraft"]


def by_name(given, **options):
    return {table.name: table for table in all_tables(only_set(given), TableOptions(**options))}


def test_few_shot_means_are_over_split_seeds_and_never_over_shots():
    table = by_name(few_shot("sct", {task: 10 * i for i, task in enumerate(FEW_SHOT_TASKS)}))["few_shot"]
    row = cells(table, "SCT")
    assert row["food101", "1"].value == 0.5
    assert row["food101", "1"].spread == pytest.approx(0.5**0.5)
    assert row["food101", "4"].value == 10.5
    assert row["mean of data sets", "1"].value == 20.5
    assert row["mean of", "all"].value == 25.5
    assert "2 split seeds" in table.caption
    assert "trained on train, test opened once" in table.caption  # these suites keep val out of the final training


def test_a_data_set_that_is_missing_takes_the_few_shot_means_with_it():
    given = few_shot("sct", {"food101": 10}) + few_shot("lora", {"food101": 10, "stanford_cars": 20})
    row = cells(by_name(given)["few_shot"], "SCT")
    assert row["food101", "1"].is_number
    assert row["mean of 2 of 5 data sets", "1"].note == "missing"
    assert cells(by_name(given)["few_shot"], "LORA")["mean of 2 of 5 data sets", "1"].value == 15.5


def test_different_training_lists_are_not_taken_for_other_data():
    assert only_set(few_shot("sct", {"food101": 10}) + few_shot("lora", {"food101": 10})).left_out == []


def test_domain_table_names_1000_way_and_masked_columns():
    table = by_name([domain(), domain(seed=1)])["domains"]
    row = cells(table, "SCT")
    assert row["source", "imagenet"].value == 70
    assert row["targets, 1000-way", "imagenet-a"].value == 10
    assert row["targets, masked", "imagenet-a"].value == 12
    assert row["mean of targets", "1000-way"].value == pytest.approx((60 + 30 + 10 + 25) / 4)
    assert row["mean of targets", "masked"].value == pytest.approx((60 + 30 + 12 + 29) / 4)
    assert row["source", "imagenet"].spread == 0
    assert [c.name for c in table.columns][:5] == [
        "imagenet",
        "imagenetv2",
        "imagenet-sketch",
        "imagenet-a",
        "imagenet-r",
    ]


def test_a_target_that_one_method_lacks_is_missing_and_so_is_its_mean():
    without = domain("lora")
    kept = {k: v for k, v in without.metrics.items() if not k.startswith("imagenet-r")}
    row = cells(by_name([domain(), dataclasses.replace(without, metrics=kept)])["domains"], "LORA")
    assert row["targets, 1000-way", "imagenet-r"].note == "missing"
    assert row["mean of targets", "1000-way"].note == "missing"


def test_parameters_without_and_with_head_and_the_average_rank():
    table = task_table(only_set(records("sct", (10, 20, 30, 40, 50)) + records("lora", (11, 19, 30, 39, 49))))
    assert cells(table, "SCT")["", "params"].value == 10
    assert cells(table, "SCT")["", "params+head"].value == 15
    assert cells(table, "SCT")["", "rank"].value == pytest.approx((2 + 1 + 1.5 + 1 + 1) / 5)
    assert cells(table, "LORA")["", "rank"].value == pytest.approx((1 + 2 + 1.5 + 2 + 2) / 5)


def test_a_row_with_holes_has_no_rank_and_does_not_count_in_that_of_others():
    table = task_table(only_set(with_holes()))
    lora = next(label for label in table.rows if label.startswith("LoRA"))
    assert cells(table, lora)["", "rank"].note == "missing"
    assert cells(table, "SCT")["", "rank"].value == 1


def test_costs_are_means_over_the_tasks_of_the_averages_and_marked_where_some_are_missing():
    sct = [costed(r, train_seconds=s) for r, s in zip(records(), (9, 19, 29, 39, 49), strict=True)]
    again = costed(records(seed=1)[0], train_seconds=19)  # a cell's runs are averaged first
    unknown = costed(make_record(spec=make_spec(task="zebra")), train_seconds=999)
    given = [*sct, again, unknown, *[costed(r, train_seconds=9) for r in records("lora")[:2]]]
    for table, name in (
        (task_table(only_set(given)), ("", "seconds")),
        (efficiency_table(only_set(given)), ("a run", "train s")),
    ):
        attach_and_evaluate = 1 if name[0] == "" else 0
        assert cells(table, "SCT")[name].value == pytest.approx((14 + 19 + 29 + 39 + 49) / 5 + attach_and_evaluate)
        assert cells(table, "LORA")[name].note == "*"
    whole = task_table(only_set([*sct, *records("lora")]))
    assert cells(whole, "SCT")["", "seconds"].note == ""


def test_means_and_ranks_over_fewer_seeds_are_marked():
    chosen = only_set(records() + records(seed=1) + records("lora", (9, 9, 9, 9, 9)))
    table = significance_table(chosen)
    assert [[cells(table, label)["", name].note for name in ("mean", "rank")] for label in ("SCT", "LORA")] == [
        ["", ""],
        ["*", "*"],
    ]
    assert "rests on fewer seeds" in table.full_caption
    assert [cells(task_table(chosen), label)["", "rank"].note for label in ("SCT", "LORA")] == ["", "*"]


def test_best_is_what_is_printed_best():
    given = [domain(m, (value, 60, 30, 10, 12, 25, 29)) for m, value in (("sct", 60.35), ("lora", 60.4), ("linear", 1))]
    assert marked_rows(by_name(given)["domains"])[0] == ({"SCT", "LORA"}, {"LINEAR"})


def test_captions_explain_no_rank_and_no_best_that_the_table_lacks():
    assert "rank" not in by_name([domain(), domain("lora")])["domains"].caption
    assert (
        "Best of"
        not in task_table(only_set([failed(task=t, method=m) for t in TASKS for m in ("sct", "lora")])).full_caption
    )


def test_efficiency_shows_what_there_is():
    info = [
        dataclasses.replace(r, method_info={"a": {"selection_seconds": 2}, "b": {"selection_seconds": 1}})
        for r in records()
    ]
    measured = {"latency_seconds": {"1": 0.0051234, "64": 1.5}, "merged_latency_seconds": {"1": 0.004, "64": 1.25}}
    given = [costed(r, forward_flops=5_000_000, peak_memory_bytes=2**20, **measured) for r in info] + records("lora")
    table = efficiency_table(only_set(given))
    sct, lora = cells(table, "SCT"), cells(table, "LORA")
    assert sct["a run", "selection s"].value == 3
    assert lora["a run", "selection s"].note == "missing"
    assert sct["training", "memory"].value == 2**20
    assert lora["training", "memory"].note == "missing"
    assert "5.0M" in to_markdown(table)
    assert "1.0MB" in to_markdown(table)
    assert "| 5.12 | 4 | 1500 | 1250 |" in to_markdown(table)
    assert lora["inference", "merged 1"].note == "missing"
    assert sct["in all", "CPU hours"].note == "missing"  # these records do not name their type of device


def test_energy_has_a_column_for_each_kind_of_counter_that_counted():
    assert "energy" not in to_markdown(efficiency_table(only_set(records())))
    gpu = [costed(r, energy_joules=12_340.0, energy_source="nvml") for r in records()]
    cpu = [costed(r, energy_joules=560.0, energy_source="rapl") for r in records()]
    table = efficiency_table(only_set(gpu + records("lora")))
    assert "12.3kJ" in to_markdown(table) and "counter of the whole GPU" in table.caption
    assert ("a run", "energy of the CPU") not in cells(table, "SCT")
    assert cells(table, "LORA")["a run", "energy of the GPU"].note == "missing"
    mixed = cells(efficiency_table(only_set(gpu[:2] + cpu[2:])), "SCT")
    kinds = [mixed["a run", f"energy of the {device}"] for device in ("GPU", "CPU")]
    assert [(kind.value, kind.note) for kind in kinds] == [(12_340.0, "*"), (560.0, "*")]


def test_hours_are_summed_over_all_runs_and_marked_where_one_failed():
    given = [
        dataclasses.replace(r, environment={"device": "H", "device_type": "cuda", "precision": "bf16"})
        for r in records()
    ]
    row = cells(efficiency_table(only_set(given)), "SCT")
    assert row["in all", "GPU hours"].value == pytest.approx(5 * 4 / 3600)
    assert row["in all", "CPU hours"].value == 0
    row = cells(efficiency_table(only_set([*given[:4], failed(task="dsprites_ori")])), "SCT")
    assert row["in all", "GPU hours"].note == "*"


def test_times_of_several_devices_are_marked():
    other = [dataclasses.replace(r, environment={"device": "A100", "precision": "float32"}) for r in records()[:2]]
    table = efficiency_table(only_set(other + records()[2:]))
    assert cells(table, "SCT")["a run", "train s"].note == "‡"
    assert "several kinds of device" in table.full_caption
    assert "A100" in table.caption


@pytest.mark.parametrize("start", ["head", "block 11"])
def test_steps_on_cached_features_are_marked(start):
    given = [costed(r, cached_features=start, step_seconds=0.001) for r in records("linear")] + records()
    table = efficiency_table(only_set(given))
    assert cells(table, "LINEAR")["training", "images/s"].note == "§"
    assert cells(table, "SCT")["training", "images/s"].note == ""
    assert "| 1§ | 2.0§ |" in to_markdown(table) and "were computed once" in table.full_caption


def test_settings_are_one_row_where_they_are_the_same():
    table = settings_table(only_set(records()))
    assert list(table.rows) == ["SCT"]
    row = cells(table, "SCT")
    assert row["recipe", "lr"].text == "0.001"
    assert row["", "method's own"].text == "channels=48"


def tuned(method="sct", protocol="tuned", **accuracies):
    """Every task with a learning rate of its own."""
    given = []
    for i, task in enumerate(TASKS):
        spec = make_spec(task=task, method=method, protocol=protocol, recipe=recipe(lr=10.0**-i))
        given.append(make_record(spec=spec, accuracy=10.0 * i))
    return given


@pytest.mark.parametrize("protocol", ["tuned", "published"])
def test_settings_chosen_per_task_stay_one_method_with_a_row_each(protocol):
    chosen = only_set(tuned(protocol=protocol))
    assert set(chosen.rows["label"]) == {"SCT"}
    assert cells(task_table(chosen), "SCT")["mean of", "tasks"].value == 20
    rows = settings_table(chosen).rows
    assert list(rows) == [f"SCT, {task}" for task in TASKS]


def test_two_variants_under_a_per_task_protocol_are_told_apart():
    a, b = tuned(), [dataclasses.replace(r, spec=dataclasses.replace(r.spec, config={"channels": 24})) for r in tuned()]
    assert set(only_set(a + b).rows["label"]) == {"SCT (channels=48)", "SCT (channels=24)"}


def test_one_recipe_means_one_recipe_under_fixed():
    assert len(set(only_set(tuned(protocol="fixed")).rows["label"])) == len(TASKS)


def test_oracle_rows_are_marked_and_never_share_a_table():
    sets = comparable_sets(records(protocol="oracle") + records())
    assert [list(task_table(s).rows) for s in sets] == [["SCT"], ["SCT †"]]
    table = task_table(sets[1])
    assert "oracle" in table.title
    assert "the test split chose the result" in table.caption
    assert "†: the test split was looked at more than once" in table.full_caption
    assert "†" not in task_table(sets[0]).full_caption


def test_a_run_that_looked_twice_marks_its_row():
    twice = [dataclasses.replace(r, test_looks=2) for r in records()[:1]] + records()[1:]
    assert list(task_table(only_set(twice)).rows) == ["SCT †"]


def test_ablation_over_a_field_of_the_method():
    given = [r for c in (8, 16, 128) for r in records(config={"channels": c}, accuracies=[c / 4] * 5)] + records("lora")
    table = ablation_table(only_set(given), "channels")
    assert list(table.rows) == ["SCT (channels=8)", "SCT (channels=16)", "SCT (channels=128)"]
    assert ablation_axes(only_set(given)) == ["channels"]
    assert to_markdown(by_name(given)["ablation_channels"]) == to_markdown(table)


def test_a_setting_that_is_not_set_is_a_variant_without_a_name_for_it():
    given = [r for c in (None, 8) for r in records(config={"channels": c})] + records("linear", config={})
    assert list(ablation_table(only_set(given), "channels").rows) == ["SCT (channels=8)", "SCT"]
    assert cells(settings_table(only_set(given)), "SCT")["", "method's own"].text == "channels=None"


def test_ablation_over_the_recipe_and_only_with_all_else_equal():
    given = records(recipe=recipe(lr=1e-3)) + records(recipe=recipe(lr=1e-2))
    assert list(ablation_table(only_set(given), "recipe.lr").rows) == ["SCT (lr=0.001)", "SCT (lr=0.01)"]
    mixed = records(recipe=recipe(lr=1e-3), config={"channels": 8}) + records(recipe=recipe(lr=1e-2))
    assert ablation_axes(only_set(mixed)) == []


def test_significance_against_linear_by_default():
    given = with_holes() + records("full", (1, 2, 3, 4, 5)) + records("full", (1, 2, 3, 4, 5), seed=1)
    table = significance_table(only_set(given))
    assert "against Linear" in table.title
    assert list(table.rows)[:3] == ["SCT", "Linear", "FULL"]
    sct = cells(table, "SCT")
    assert [sct["against the reference", name].value for name in ("wins", "ties", "losses")] == [5, 0, 0]
    assert sct["Wilcoxon", "p"].value == pytest.approx(2 / 2**5)
    assert sct["Wilcoxon", "Holm p"].value == pytest.approx(4 / 2**5)
    assert cells(table, "Linear")["", "reads"].text == "reference"
    assert sct["mean, interval over seeds", "from"].note == "missing"  # one of its tasks has one seed
    linear = cells(table, "Linear")
    ends = [linear["mean, interval over seeds", end].value for end in ("from", "to")]
    assert sum(ends) / 2 == pytest.approx(linear["", "mean"].value) == pytest.approx(30.604)
    assert ends == pytest.approx([29.731, 31.477], abs=1e-3)  # v of .96, 0, .25, .25, 1; f = 3.98; t = 2.782
    lora = next(label for label in table.rows if label.startswith("LoRA"))
    assert all(cell.note == "missing" for cell in table.cells(lora))
    assert "Friedman" in table.caption
    assert "Nemenyi" in table.caption


def test_another_reference_and_the_best_where_there_is_no_linear():
    given = records("sct", (5, 5, 5, 5, 5)) + records("lora", (4, 4, 4, 4, 4))
    assert "against SCT" in significance_table(only_set(given)).title
    assert "against LORA" in significance_table(only_set(given), "lora").title
    assert cells(significance_table(only_set(given), "LORA"), "SCT")["", "reads"].text == "undecided"


def test_no_significance_without_two_complete_rows():
    assert significance_table(only_set(records() + records("lora")[:3])) is None


def test_a_method_and_a_suite_unknown_to_this_version():
    specs = [make_spec(suite="moon", task=task, method="warp_drive") for task in ("crater", "basalt")]
    given = [make_record(spec=s, accuracy=50.0, method_title="Warp") for s in specs]
    table = task_table(only_set(given))
    assert [c.name for c in table.columns][:2] == ["basalt", "crater"]
    assert cells(table, "Warp")["mean of", "tasks"].value == 50
    assert by_name(given)


def test_a_task_unknown_to_this_version_of_a_known_suite_is_shown_and_takes_no_mean_rank_or_test_with_it():
    given = [*records(), make_record(spec=make_spec(task="zebra"), accuracy=1.0), *records("lora", (9, 19, 29, 39, 49))]
    table = task_table(only_set(given))
    assert cells(table, "SCT")["other", "zebra"].value == 1
    assert cells(table, "LORA")["other", "zebra"].note == "missing"
    assert [cells(table, "LORA")["mean of", name].value for name in ("tasks", "groups")] == [29, 29]
    assert ("mean of", "other") not in cells(table, "LORA")
    assert [cells(table, label)["", "rank"].value for label in ("SCT", "LORA")] == [1, 2]
    assert "in no mean and no rank" in table.caption
    assert cells(significance_table(only_set(given), "lora"), "SCT")["against the reference", "wins"].value == 5


def test_means_over_a_part_of_the_suite_say_so():
    given = [r for m in ("sct", "lora") for r in records(m) if r.spec.task in ("animals", "digits")]
    table = task_table(only_set(given))
    assert [c.name for c in table.columns][:2] == ["animals", "digits"]
    assert cells(table, "SCT")["mean of", "2 of 5 tasks"].value == 25
    assert ("mean of", "tasks") not in cells(table, "SCT")


def test_one_group_has_one_mean():
    given = [r for r in records() if r.spec.task.startswith("dsprites")]
    assert [c.name for c in task_table(only_set(given)).columns if c.group == "mean of"] == ["2 of 5 tasks"]


def test_a_suite_of_shots_or_targets_has_no_second_table_of_the_same_numbers():
    assert [t.name for t in result_tables(only_set(few_shot("sct", {"food101": 10})))] == ["few_shot"]
    assert [t.name for t in result_tables(only_set([domain()]))] == ["domains"]


def test_a_protocol_unknown_to_this_version_is_named():
    assert "Protocol guess: unknown to this version" in task_table(only_set(records(protocol="guess"))).caption


def test_methods_of_one_title_are_told_apart():
    clash = [dataclasses.replace(r, method_title="SCT") for r in records("mine")]
    assert set(only_set(records() + clash).rows["label"]) == {"SCT [sct]", "SCT [mine]"}


def test_only_failed_runs_still_make_tables():
    given = [failed(task=task) for task in TASKS]
    assert cells(result_tables(only_set(given))[0], "SCT")["natural", "animals"].note == "failed"
    assert all(to_markdown(table) for table in all_tables(only_set(given)))
