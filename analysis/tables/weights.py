"""What pretrained weights are worth: the same runs with them and at random."""

from __future__ import annotations

from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.tables.base import MISSING, Column, Table
from analysis.tables.cells import label_order, set_title
from analysis.tables.pairs import pair_runs

WEIGHTS_TABLE = "pretrained_minus_random"


def weights_tables(pretrained: ComparableSet, randoms: list[ComparableSet]) -> list[Table]:
    """A table for each set of the same model at random, with its checkpoint in the name where there are several."""
    names = [f"_{random.key['weights_digest'][:8]}" if len(randoms) > 1 else "" for random in randoms]
    return [_table(pretrained, random, name) for random, name in zip(randoms, names, strict=True)]


def _table(pretrained: ComparableSet, random: ComparableSet, suffix: str) -> Table:
    keys = suite_cells(pretrained.key["suite"], pretrained.rows)
    pairs = pair_runs(pretrained.rows, random.rows, ("pretrained", "random"))
    cells = pairs.cells()
    which = f" {suffix[1:]}" if suffix else ""
    caption = "Difference of top-1 accuracies in points, mean over pairs of runs with the same method, settings, task, "
    caption += "seeds and data; positive means that the pretrained weights are better."
    return Table(
        name=WEIGHTS_TABLE + suffix,
        title=set_title(pretrained, f"pretrained minus random weights{which}"),
        caption=f"{caption} {pairs.alone}".strip(),
        columns=[Column(name=cell_name(*key), group=group, kind="points", best="") for key, group in keys.items()],
        rows={
            label: [cells[label].get(key, MISSING) for key in keys]
            for label in label_order(pretrained.rows)
            if label in cells
        },
    )
