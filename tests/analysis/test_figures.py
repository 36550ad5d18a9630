"""Figures: right numbers in them, one look per method, nothing drawn that the records do not allow."""

import dataclasses
import itertools

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.figures.ablation import ablation, ablation_points, varied_fields
from analysis.figures.channels import (
    chance_jaccard,
    channel_counts,
    channel_heatmap,
    channel_overlap,
    jaccard,
    overlap_table,
)
from analysis.figures.data import complete, read_whole, run_frame, seed_means
from analysis.figures.gallery import drawings
from analysis.figures.labels import _distance, _overlap
from analysis.figures.learning import curve_points, learning_curves, with_curves
from analysis.figures.panels import few_shot_curves, group_bars, target_bars
from analysis.figures.ranks import cliques
from analysis.figures.reproduction import reproduction_scatter
from analysis.figures.style import FAMILIES, MOST_LOOKS, NEUTRAL, save, style_of, styles
from analysis.figures.tradeoff import pareto_front, tradeoff
from analysis.frame import comparable_sets, suite_tasks
from analysis.statistics import average_ranks
from analysis.tables.significance import significance_table
from harness.schema.metrics import ACCURACY
from harness.schema.record import Epoch
from methods.registry import all_methods
from tests.examples import make_metrics, make_record, make_spec
from tests.table_records import domain, from_records

TASKS = ["photo_crops", "animals", "digits", "dsprites_loc", "dsprites_ori"]


def records(method="sct", accuracies=(10, 20, 30, 40, 50), seed=0, parts=None, **changes):
    specs = [make_spec(task=task, method=method, seed=seed, **changes) for task in TASKS]
    return [make_record(spec=s, accuracy=float(a), **(parts or {})) for s, a in zip(specs, accuracies, strict=False)]


def runs_of(given):
    (chosen,) = comparable_sets(given)
    return run_frame(chosen)


def whole_runs_of(given):
    return read_whole(runs_of(given), from_records(given).read)


def drawn(given, published=None):
    (chosen,) = comparable_sets(given)
    return {d.name: d.draw() for d in drawings(chosen, from_records(given).read, published)}


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]]


DEMO = suite_tasks("demo", pd.DataFrame({"task": TASKS}))


def looks_of(methods):
    """`methods`: name to family."""
    return styles(pd.DataFrame({"method": list(methods), "family": list(methods.values()), "label": list(methods)}))


def test_every_method_has_a_look_of_its_own_in_the_colour_of_its_family():
    looks = looks_of({name: method.family for name, method in all_methods().items()})
    assert set(FAMILIES) == {method.family for method in all_methods().values()}
    for family in FAMILIES:
        few = [name for name, method in all_methods().items() if method.family == family][:MOST_LOOKS]
        own = looks_of(dict.fromkeys(few, family))
        assert len({(look.colour, look.marker) for look in own.values()}) == len(few)
        assert {look.colour for look in own.values()}.isdisjoint(
            look.colour for name, look in looks.items() if all_methods()[name].family != family
        )


def test_up_to_as_many_methods_of_a_family_as_there_are_markers_have_a_marker_each():
    looks = looks_of(dict.fromkeys("abcdefghijklmno", "adapter"))
    assert len({look.marker for look in looks.values()}) == 15


def test_looks_do_not_depend_on_methods_of_other_families_nor_on_those_that_come_later():
    alone = looks_of({"lora": "reparameterisation"})["lora"]
    others = {f"m{i}": "adapter" for i in range(40)} | {"vera": "reparameterisation"}
    assert looks_of({"lora": "reparameterisation"} | others)["lora"] == alone


def test_a_method_whose_family_no_record_tells_is_neutral():
    assert style_of("", 0).colour == NEUTRAL and NEUTRAL not in FAMILIES.values()
    runs = runs_of(records() + [dataclasses.replace(r, method_family="selective") for r in records(seed=1)])
    assert styles(runs)["SCT"] == looks_of({"sct": "selective"})["sct"]


def test_variants_of_a_method_share_its_colour_and_differ_in_line():
    looks = styles(runs_of(records(config={"channels": 24}) + records(config={"channels": 48})))
    first, second = looks.values()
    assert first.colour == second.colour
    assert first.line != second.line and first.filled != second.filled


def test_colours_can_be_read_on_white():
    for family, look in itertools.product((*FAMILIES, ""), range(MOST_LOOKS)):
        r, g, b = matplotlib.colors.to_rgb(style_of(family, look).colour)
        assert 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.72


def test_pareto_front():
    assert pareto_front([1, 2, 3, 3, 4], [10, 9, 20, 21, 21]) == [0, 3]
    assert pareto_front([5, 5], [1, 1]) == [0, 1]  # ties in both stay
    assert pareto_front([1, 1, 2], [5, 5, 5]) == [0, 1]


def test_means_over_tasks_with_spread_over_seeds():
    means = seed_means(runs_of(records() + records(accuracies=(20, 30, 40, 50, 60), seed=1)), ACCURACY)
    assert means["mean"].tolist() == [35]
    assert means["spread"].tolist() == pytest.approx([50**0.5])


def test_a_method_without_a_task_is_in_no_figure_of_means():
    runs = runs_of(records() + records("lora") + records("full")[:4])
    assert set(complete(runs, TASKS)["label"]) == {"LORA", "SCT"}
    assert "FULL" not in texts(tradeoff(runs, TASKS, "parameters"))


CROWD = ["linear", *(name for name in all_methods() if name != "linear")]


def crowd(count):
    """So many methods whose accuracies fall into five levels, each with a few more parameters than the one before."""
    given = [r for i, name in enumerate(CROWD[:count]) for r in records(name, accuracies=[50 + i % 5] * 5)]
    return [
        dataclasses.replace(
            r, parameters=dataclasses.replace(r.parameters, method=1000 + 137 * CROWD.index(r.spec.method))
        )
        for r in given
    ]


def test_labels_of_a_crowded_trade_off_do_not_overlap():
    figure = tradeoff(runs_of(crowd(24)), TASKS, "parameters")
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(t).extents for t in figure.axes[0].texts]
    shared = [_overlap(box, np.array([*boxes[:i], *boxes[i + 1 :]])) for i, box in enumerate(boxes)]
    assert len(boxes) == 24
    assert sum(value > 5 for value in shared) == 0
    points = figure.axes[0].transData.transform([t.xy for t in figure.axes[0].texts])
    for i, (text, box) in enumerate(zip(figure.axes[0].texts, boxes, strict=True)):
        distances = _distance(box, points)
        assert text.arrow_patch or distances[i] < np.delete(distances, i).min(), text.get_text()


def test_of_too_many_methods_the_front_the_best_and_the_reference_are_named():
    figure = tradeoff(runs_of(crowd(40)), TASKS, "parameters")
    names = {text.get_text() for text in figure.axes[0].texts}
    assert names >= {name.upper() for name in CROWD[:5]}  # the front, and linear with it
    assert len(names) < 15
    other = tradeoff(runs_of(crowd(40)), TASKS, "parameters", CROWD[30])
    assert {text.get_text() for text in other.axes[0].texts} - names == {CROWD[30].upper()}
    assert "light dots: the others of 40" in figure.axes[0].get_title(loc="left")
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_color() == "#bbbbbb") == 40 - len(
        names
    )


def test_group_bars_hold_group_means_and_their_mean():
    shown = texts(group_bars(runs_of(records() + records("lora", accuracies=[60] * 5)), DEMO))
    assert {" 15.0", " 30.0", " 45.0", " 60.0"} <= set(shown)
    assert {"natural", "specialized", "structured", "mean of groups"} <= set(shown)


def test_ranks_share_ties():
    table = pd.DataFrame([[3, 3, 3, 1], [2, 2, 3, 2], [1, 1, 1, 3]], index=list("abc"))
    assert average_ranks(table).to_dict() == {"a": pytest.approx(1.625), "b": 1.875, "c": 2.5}


def test_bars_of_the_diagram_are_maximal():
    assert cliques([1.0, 1.5, 2.4, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 3.0], 1.0) == []


def curve(loss):
    return [Epoch(epoch=e, train_loss=loss / e, train_accuracy=10.0 * e, lr=1e-3) for e in (1, 2, 3)]


def test_learning_curves_are_means_over_seeds():
    given = records(parts={"curve": curve(2.0)}) + records(seed=1, parts={"curve": curve(4.0)})
    points = curve_points(whole_runs_of(given))
    first = points[(points["task"] == "digits") & (points["epoch"] == 1)].iloc[0]
    assert (first["loss"], first["loss sd"]) == (3.0, pytest.approx(2**0.5))
    assert [a.get_title() for a in learning_curves(whole_runs_of(given), "loss", 1).axes] == TASKS
    assert with_curves(runs_of(records())).empty  # one epoch is no curve


def test_channel_overlap():
    assert channel_counts([[[0, 2], [1]], [[2], [0]]]).tolist() == [[1, 0, 2], [1, 1, 0]]
    assert jaccard([[0, 1], [5]], [[1, 2], [5]]) == pytest.approx((1 / 3 + 1) / 2)
    assert chance_jaccard([[0] * 48], 384) == pytest.approx(48 / 720)
    digits = make_record(spec=make_spec(task="digits"), method_info={"channels": [[0, 1]]})
    animals = make_record(spec=make_spec(task="animals"), method_info={"channels": [[1, 2]]})
    table = overlap_table(whole_runs_of([digits, animals]))
    assert table.loc["animals", "digits"] == pytest.approx(1 / 3)
    assert np.isnan(table.loc["digits", "digits"])
    again = make_record(spec=make_spec(task="digits", seed=1), method_info={"channels": [[0, 1]]})
    runs = whole_runs_of([digits, animals, again])
    shown = channel_overlap(runs).axes[0]
    assert "1.00" in {text.get_text() for text in shown.texts}
    assert len(shown.collections[0].get_array().compressed()) == 2  # the diagonal has no colour of the scale
    assert "1 run on 1 task" in channel_heatmap(whole_runs_of([digits])).axes[0].get_title(loc="left")


def test_ablation_of_any_field():
    given = [
        r for k, add in ((12, 0), (24, 5), (48, 3)) for r in records(config={"channels": k}, accuracies=[50 + add] * 5)
    ]
    runs = runs_of(given + records("lora"))
    assert varied_fields(runs) == ["channels"]
    points, tasks = ablation_points(runs, "channels", ["channels"])
    assert dict(zip(points["setting"], points["mean"], strict=True)) == {12: 50, 24: 55, 48: 53}
    assert sorted(tasks) == sorted(TASKS)
    assert ablation(runs, "channels", ["channels"]).axes[0].get_xlabel() == "channels"
    assert ablation(runs, "rank", ["rank"]) is None


def test_ablation_shows_a_default_beside_numbers():
    given = [r for k in (None, 192, 24) for r in records(config={"channels": k})]
    axes = ablation(runs_of(given), "channels", ["channels"]).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["24", "192", "default"]
    assert len(axes.lines[0].get_xdata()) == 3


def test_ablation_is_over_the_tasks_that_all_points_share():
    given = records(config={"channels": 12}) + records(config={"channels": 24})[:2]
    figure = ablation(runs_of(given), "channels", ["channels"])
    assert figure.axes[0].get_ylabel() == "mean top-1 accuracy over 2 tasks (%)"


def test_few_shot_curves():
    given = [
        make_record(
            spec=make_spec(suite="fewshot", task=t, shots=s, split_seed=seed, method=m),
            accuracy=30.0 + s + seed + len(m),
        )
        for t in ("food101", "oxford_pets")
        for s in (1, 4, 16)
        for seed in (1, 2)
        for m in ("sct", "lora")
    ]
    figure = few_shot_curves(runs_of(given))
    assert [axes.get_title() for axes in figure.axes] == ["food101", "oxford_pets", "mean"]
    line = figure.axes[2].lines[0]
    assert line.get_xdata().tolist() == [1, 4, 16]
    assert line.get_ydata().tolist() == [36.5, 39.5, 51.5]
    assert few_shot_curves(runs_of(records())) is None


def test_targets_of_domain_generalisation():
    scored = {name: make_metrics(a) for name, a in (("test", 70.0), ("imagenet-a", 5.0), ("imagenet-a/masked", 12.5))}
    spec = make_spec(suite="domain_generalization", task="imagenet", shots=16)
    figure = target_bars(runs_of([make_record(spec=spec, metrics=scored)]))
    assert [axes.get_title() for axes in figure.axes] == ["imagenet (source)", "imagenet-a, masked"]
    assert {" 70.0", " 12.5"} <= set(texts(figure))
    assert target_bars(runs_of(records())) is None
    low = {name: make_metrics(value.accuracy - 4) for name, value in scored.items()}
    few = make_record(spec=dataclasses.replace(spec, shots=1), metrics=low)
    figure = target_bars(runs_of([make_record(spec=spec, metrics=scored), few]))
    titles = [
        f"{name}\nimagenet {shots}-shot" for shots in (1, 16) for name in ("imagenet (source)", "imagenet-a, masked")
    ]
    assert sorted(axes.get_title() for axes in figure.axes) == sorted(titles)
    assert {" 70.0", " 12.5", " 66.0", " 8.5"} <= set(texts(figure))


def test_one_task_is_named_and_makes_no_test():
    given = [domain(), domain("lora", accuracies=(71, 61, 31, 11, 13, 26, 30))]
    assert tradeoff(runs_of(given), ["imagenet"], "parameters").axes[0].get_ylabel() == "top-1 accuracy, imagenet (%)"
    (chosen,) = comparable_sets(given)
    assert significance_table(chosen) is None
    captions = {d.name: d.caption for d in drawings(chosen, from_records(given).read)}
    assert captions["accuracy_seconds"].startswith("Top-1 accuracy on imagenet against seconds")
    assert "On the source alone" in captions["accuracy_seconds"]


def test_published_against_measured(tmp_path):
    pairs = pd.DataFrame(
        {
            "method": ["sct", "lora"],
            "family": ["selective", "reparameterisation"],
            "label": ["SCT", "LoRA"],
            "task": ["digits"] * 2,
            "published": [71, 60.0],
            "measured": [70, 65],
        }
    )
    figure = reproduction_scatter(pairs)
    assert figure.axes[0].get_xlabel() == "published (%)"
    assert reproduction_scatter(pairs.iloc[:0]) is None
    assert [path.read_bytes()[:4] for path in save(figure, tmp_path, "x")] == [b"\x89PNG", b"%PDF"]


def test_nothing_is_drawn_that_the_records_do_not_allow():
    one = drawn(records()[:1])
    assert {name for name, figure in one.items() if figure is not None} == set()
    many = drawn(records() + records("lora", accuracies=[40] * 5) + records("full"))
    assert {n for n, figure in many.items() if isinstance(figure, Figure)} == {
        *("accuracy_parameters", "accuracy_seconds", "groups", "critical_difference"),
    }


def test_failed_runs_alone_draw_nothing():
    failed = [dataclasses.replace(r, status="failed", metrics={}, curve=[], cost=None) for r in records()]
    assert not any(drawn(failed).values())
