"""Two methods, or two results folders, paired over the tasks they share."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.errors import AnalysisError
from analysis.frame import CELL_KEYS, REPLICATE_KEYS, ComparableSet, cell_name, suite_cells
from analysis.statistics import Interval, bootstrap_interval, t_interval, verdict, wilcoxon, win_tie_loss
from analysis.tables.base import Cell, Column, Table, number_cell
from analysis.tables.cells import Key, seed_count, set_caption, set_title
from analysis.tables.significance import MARGIN, find_reference
from analysis.unlike import notes


class CompareError(AnalysisError):
    """There is nothing to compare. The message is for the user."""


@dataclass(frozen=True, slots=True)
class TaskPair:
    """Both methods on one task."""

    first: float
    second: float
    """Means over the replicates that each of them has."""

    interval: Interval
    """Student's interval of first - second over the seeds that both have; unknown for fewer than two."""

    seeds: tuple[int, int, int]
    """Number of replicates of the first, of the second, and shared."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """First minus second, in points of accuracy."""

    first: str
    second: str
    pairs: dict[Key, TaskPair]
    lacking: list[str]
    """Tasks that only one of them has."""

    @property
    def differences(self) -> list[float]:
        """First minus second per shared task."""
        return [pair.first - pair.second for pair in self.pairs.values()]


def _accuracies(runs: pd.DataFrame) -> dict[Key, pd.Series]:
    """(task, shots) to accuracy by replicate."""
    complete = runs[(runs["status"] == "complete") & runs["accuracy"].notna()]
    found = {}
    for (task, shots), same in complete.groupby(CELL_KEYS):
        found[str(task), int(str(shots))] = same.groupby(REPLICATE_KEYS)["accuracy"].mean()
    return found


def compare_runs(first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], order: list[Key]) -> Comparison:
    """Pair the runs of two methods. `CompareError` if they share no task."""
    ours, theirs = _accuracies(first), _accuracies(second)
    pairs = {}
    for key in (key for key in order if key in ours and key in theirs):
        a, b = ours[key], theirs[key]
        shared = a.index.intersection(b.index)
        interval = t_interval(list(a[shared] - b[shared]))
        pairs[key] = TaskPair(float(a.mean()), float(b.mean()), interval, (len(a), len(b), len(shared)))
    if not pairs:
        tasks = [", ".join(sorted({task for task, _ in side})) or "none complete" for side in (ours, theirs)]
        raise CompareError(f"{names[0]} and {names[1]} share no task: {tasks[0]} against {tasks[1]}")
    lacking = [cell_name(*key) for key in order if (key in ours) != (key in theirs)]
    return Comparison(*names, pairs, lacking)


def compare_methods(chosen: ComparableSet, first: str, second: str) -> Comparison:
    """Two methods of one set, by label, title or name. `CompareError` names what there is."""
    names = chosen.rows.drop_duplicates("label").set_index("label")["method"]
    found = [find_reference(names, wanted) for wanted in (first, second)]
    for label, wanted in zip(found, (first, second), strict=True):
        if label is None:
            raise CompareError(
                f"no single method {wanted!r} in {set_title(chosen)}. There are: {'; '.join(sorted(names.index))}"
            )
    a, b = str(found[0]), str(found[1])
    if a == b:
        raise CompareError(f"{first!r} and {second!r} are both {a}")
    rows = chosen.rows
    order = list(suite_cells(chosen.key["suite"], rows))
    return compare_runs(rows[rows["label"] == a], rows[rows["label"] == b], (a, b), order)


def overall(comparison: Comparison, margin: float = MARGIN) -> str:
    """The comparison in a sentence or two."""
    differences = comparison.differences
    mean, interval = sum(differences) / len(differences), bootstrap_interval(differences)
    counts, p = win_tie_loss(differences), wilcoxon(differences)
    reading = {
        "equal": f"practically equal within ±{margin:g} points",
        "better": f"{comparison.first} is better",
        "worse": f"{comparison.first} is worse",
        "undecided": f"undecided at a margin of ±{margin:g} points",
        "unknown": "one task says nothing of others",
    }[verdict(interval, p, margin)]
    between = f" (95 % interval {interval.low:+.2f} to {interval.high:+.2f})" if interval.known else ""
    return (
        f"{comparison.first} beats {comparison.second} on {counts.wins} of {len(differences)} tasks, ties on "
        f"{counts.ties}, loses on {counts.losses}. Mean difference {mean:+.2f} points{between}; Wilcoxon p = {p:.3g}; "
        f"{reading}."
    )


def comparison_table(comparison: Comparison, chosen: ComparableSet, margin: float = MARGIN) -> Table:
    """A row per shared task, and their mean; the sentence of `overall` is in the caption."""
    group = "difference in points"
    columns = [Column(name=comparison.first, digits=2, best=""), Column(name=comparison.second, digits=2, best="")]
    columns += [Column(name=n, group=group, kind="points", best="", digits=2) for n in ("mean", "low", "high")]
    columns += [Column(name="seeds shared", kind="integer", best="")]
    caption = (
        f"{overall(comparison, margin)} low, high: 95 % interval, of a task by Student's t over paired seeds, of the "
        f"mean by bootstrap over tasks (BCa, seeded). {set_caption(chosen)}"
    )
    if comparison.lacking:
        caption += f" Not compared, for only one of the two has them: {', '.join(comparison.lacking)}."
    table = Table(
        name="comparison",
        title=set_title(chosen, f"{comparison.first} against {comparison.second}"),
        caption=caption,
        columns=columns,
        corner="task",
    )
    seeds = seed_count(chosen.rows)
    for key, pair in comparison.pairs.items():
        table.rows[cell_name(*key)] = _pair_cells(pair, seeds)
    table.rows[f"mean of {len(comparison.pairs)} tasks"] = _mean_cells(comparison)
    return table


def _pair_cells(pair: TaskPair, seeds: int) -> list[Cell]:
    notes = ["" if count == seeds else f"{count}/{seeds}" for count in pair.seeds[:2]]
    ends = [number_cell(pair.interval.low), number_cell(pair.interval.high)]
    values = [Cell(value=v, note=note) for v, note in zip((pair.first, pair.second), notes, strict=True)]
    return [*values, Cell(value=pair.first - pair.second), *ends, Cell(value=float(pair.seeds[2]))]


def _mean_cells(comparison: Comparison) -> list[Cell]:
    pairs, differences = list(comparison.pairs.values()), comparison.differences
    interval = bootstrap_interval(differences)
    means = [sum(values) / len(pairs) for values in ([p.first for p in pairs], [p.second for p in pairs], differences)]
    return [*map(number_cell, means), number_cell(interval.low), number_cell(interval.high), Cell(text="")]


def compare_in_sets(sets: list[ComparableSet], first: str, second: str, margin: float = MARGIN) -> list[Table]:
    """Tables for every set that holds both methods. `CompareError` with the reasons if none does."""
    tables, reasons = [], []
    for chosen in sets:
        try:
            tables.append(comparison_table(compare_methods(chosen, first, second), chosen, margin))
        except CompareError as error:
            reasons.append(str(error))
    if not tables:
        raise CompareError("; ".join(reasons) or "there are no records to compare")
    return tables


def compare_folders(
    first: list[ComparableSet], second: list[ComparableSet], names: tuple[str, str], margin: float = MARGIN
) -> list[Table]:
    """One table per method that both folders hold under the same conditions; conditions are never mixed."""
    tables = []
    others = {tuple(other.key.values()): other for other in second}
    for chosen in first:
        other = others.get(tuple(chosen.key.values()))
        labels = sorted(set(chosen.rows["label"]) & set(other.rows["label"])) if other else []
        for label in labels:
            assert other is not None
            tables += _folder_table(chosen, other, label, names, margin)
    if not tables:
        keys = [sorted({set_title(s) for s in side}) or ["no records"] for side in (first, second)]
        raise CompareError(
            f"{names[0]} and {names[1]} share no method and task under the same conditions: "
            f"{'; '.join(keys[0])} against {'; '.join(keys[1])}"
        )
    return tables


def _folder_table(
    chosen: ComparableSet, other: ComparableSet, label: str, names: tuple[str, str], margin: float
) -> list[Table]:
    runs = [side.rows[side.rows["label"] == label] for side in (chosen, other)]
    together = pd.concat(runs)
    if together.dropna(subset="data").groupby([*CELL_KEYS, "split_seed"])["data"].nunique().gt(1).any():
        raise CompareError(f"{label}: the folders hold runs on different data (fingerprints differ)")
    both = ComparableSet(chosen.key, together, [], notes(together))
    titles = (f"{label} in {names[0]}", f"{label} in {names[1]}")
    try:
        comparison = compare_runs(runs[0], runs[1], titles, list(suite_cells(chosen.key["suite"], together)))
    except CompareError:
        return []
    return [comparison_table(comparison, both, margin)]
