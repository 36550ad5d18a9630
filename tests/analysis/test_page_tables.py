"""Tables of the page: each cell knows the runs behind it."""

import dataclasses

from analysis.frame import comparable_sets
from analysis.page_tables import make_page_table, record_href
from analysis.tables import all_tables
from analysis.tables.tasks import task_table
from tests.examples import make_record, make_spec
from tests.page_records import records
from tests.table_records import TASKS, domain, few_shot, recipe


def test_cells_know_their_runs_and_means_those_of_their_tasks():
    families = {"lora": "reparameterisation"}
    given = [dataclasses.replace(r, method_family=families.get(r.spec.method, "")) for r in records()]
    (chosen,) = comparable_sets(given)
    board = make_page_table(chosen, task_table(chosen), "../runs")
    by_name = {(h.group, h.name): h.tasks for h in board.headings}
    assert by_name["natural", "animals"] == ["animals"]
    assert by_name["mean of", "natural"] == ["photo_crops", "animals"]
    assert len(by_name["mean of", "tasks"]) == len(by_name["", "params"]) == 5
    assert [h.name for h in board.headings[:2]] == ["tasks", "groups"]
    lora = next(row for row in board.rows if row.label == "LORA")
    assert [run[:3] for run in lora.runs["animals"]] == [(0, None, 41.0), (1, None, 42.0)]
    assert lora.family == "reparameterisation"
    assert [row.label for row in board.rows for cell in row.cells[:1] if cell.mark == "best"] == ["FULL"]


def page_tables_of(given):
    (chosen,) = comparable_sets(given)
    return {table.name: make_page_table(chosen, table, "../runs") for table in all_tables(chosen)}


def test_every_cell_of_every_table_leads_to_its_records():
    shots = few_shot("sct", {"food101": 5, "stanford_cars": 9}) + few_shot("lora", {"food101": 6, "stanford_cars": 8})
    per_task = [r for i, lr in enumerate((1e-3, 1e-2)) for r in tuned_record(TASKS[i], lr)]
    for given in (records(), shots, [domain(), domain("lora")], per_task):
        for board in page_tables_of(given).values():
            assert all(cell.href for row in board.rows for cell in row.cells), board.table.name


def tuned_record(task, lr):
    return [make_record(spec=make_spec(task=task, protocol="tuned", recipe=recipe(lr=lr)))]


def test_a_mean_over_data_sets_knows_the_runs_of_its_shots():
    board = page_tables_of(few_shot("sct", {"food101": 5, "stanford_cars": 9}))["few_shot"]
    over = next(h.tasks for h in board.headings if h.group.startswith("mean of 2 of 5") and h.name == "4")
    assert over == ["food101 4-shot", "stanford_cars 4-shot"]
    assert [run[:3] for run in board.rows[0].runs["food101 4-shot"]] == [(0, 0, 15.0), (0, 1, 16.0)]
    assert board.headings[0].name == "all"  # the mean over everything comes first, which the page sorts by


def test_a_target_s_column_knows_the_target_s_accuracies():
    board = page_tables_of([domain()])["domains"]
    heading = next(h for h in board.headings if (h.group, h.name) == ("targets, masked", "imagenet-a"))
    (run,) = board.rows[0].runs[heading.tasks[0]]
    assert (heading.target, run.value, run.targets[heading.target]) == ("imagenet-a/masked", 70.0, 12.0)


def test_only_plain_means_of_values_show_those_of_a_seed():
    named = {"tasks": records(), "domains": [domain(), domain("lora")], "significance": records()}
    shown = {
        name: {(h.group, h.name) for h in page_tables_of(given)[name].headings if h.plain_mean}
        for name, given in named.items()
    }
    assert {("", "params"), ("", "seconds"), ("mean of", "groups")}.isdisjoint(shown["tasks"])
    assert {("natural", "animals"), ("mean of", "natural"), ("mean of", "tasks")} <= shown["tasks"]
    assert {group for group, _ in shown["domains"]} == {"source", "targets, 1000-way", "targets, masked"}
    assert shown["significance"] == set()


def test_settings_of_one_task_lead_to_the_runs_of_that_task():
    board = page_tables_of([r for i, lr in enumerate((1e-3, 1e-2)) for r in tuned_record(TASKS[i], lr)])["settings"]
    assert [list(row.runs) for row in board.rows] == [[TASKS[0]], [TASKS[1]]]
    assert {row.method for row in board.rows} == {"sct"}


def test_tables_of_one_kind_have_names_of_their_own_and_the_runs_of_their_shots(tmp_path):
    low = dataclasses.replace(domain(accuracies=(9,) * 7), spec=dataclasses.replace(domain().spec, shots=1))
    boards = page_tables_of([domain(), low])
    assert [name for name in boards if name.startswith("domains")] == [
        "domains_imagenet_16-shot",
        "domains_imagenet_1-shot",
    ]
    for name, accuracy in (("16", 70.0), ("1", 9.0)):
        board = boards[f"domains_imagenet_{name}-shot"]
        keys = {key for heading in board.headings for key in heading.tasks}
        assert keys == {f"imagenet {name}-shot"}
        assert [run.value for run in board.rows[0].runs[keys.pop()]] == [accuracy]


def test_sets_that_differ_in_size_trials_or_checkpoint_have_titles_and_labels_of_their_own():
    backbone = dataclasses.replace(make_spec().backbone, digest="cd" * 32)
    given = records(protocol="tuned", trials=4) + records(protocol="tuned", trials=9, backbone=backbone)
    given += records(protocol="tuned", trials=9, preprocessing="p") + records()
    tables = [task_table(chosen) for chosen in comparable_sets(given)]
    assert len({table.label for table in tables}) == len({table.title for table in tables}) == 4
    assert tables[0].title == "demo, protocol fixed, demo_vit (pretrained)"
    assert {t.title.removeprefix("demo, protocol tuned, demo_vit (pretrained), ") for t in tables[1:]} == {
        "4 trials, checkpoint abababab, 56px-squash-bicubic-imagenet",
        "9 trials, checkpoint cdcdcdcd, 56px-squash-bicubic-imagenet",
        "9 trials, checkpoint abababab, p",
    }


def test_addresses_are_quoted():
    assert record_href("../runs", "s", "a b", "m#x", "12") == "../runs/s/a%20b/m%23x-12/record.json"
