"""What pretrained weights are worth: the same runs with them and at random."""

from __future__ import annotations

from analysis.frame import ComparableSet, cell_name, suite_cells
from analysis.metric_text import difference
from analysis.tables.base import MISSING, Table, difference_column
from analysis.tables.cells import label_order, set_title
from analysis.tables.pairs import pair_runs

WEIGHTS_TABLE = "pretrained_minus_random"


def weights_tables(pretrained: ComparableSet, randoms: list[ComparableSet]) -> list[Table]:
    """A table for each set of the same model at random, with its checkpoint in the name where there are several."""
    names = [f"_{random.key['weights_digest'][:8]}" if len(randoms) > 1 else "" for random in randoms]
    return [_table(pretrained, random, name) for random, name in zip(randoms, names, strict=True)]


def _table(pretrained: ComparableSet, random: ComparableSet, suffix: str) -> Table:
    keys = suite_cells(pretrained.key["suite"], pretrained.rows)
    pairs = pair_runs(pretrained, random, ("pretrained", "random"))
    cells = pairs.cells()
    columns = {k: difference_column(pretrained.metric, cell_name(*k), group=group) for k, group in keys.items()}
    which = f" {suffix[1:]}" if suffix else ""
    metric, sign = pretrained.metric, "positive" if pretrained.metric.higher_is_better else "negative"
    caption = f"Difference in {difference(metric)}, mean over pairs of runs with the same method, settings, task, "
    caption += f"seeds and data; {sign} means that the pretrained weights are better."
    return Table(
        name=WEIGHTS_TABLE + suffix,
        title=set_title(pretrained, f"pretrained minus random weights{which}"),
        caption=f"{caption} {pairs.alone}".strip(),
        columns=list(columns.values()),
        rows={
            label: {column.key: cells[label].get(key, MISSING) for key, column in columns.items()}
            for label in label_order(pretrained.rows)
            if label in cells
        },
    )
