"""Tables out of comparable sets of runs."""

from collections.abc import Iterable

from analysis.frame import ComparableSet
from analysis.tables.base import MARKS, MEANS, MISSING, Cell, Column, Table, mean_cell
from analysis.tables.cells import accuracy_cells, accuracy_matrix, label_order
from analysis.tables.efficiency import efficiency_table
from analysis.tables.settings import ablation_axes, ablation_table, settings_table
from analysis.tables.significance import significance_table
from analysis.tables.tasks import accuracy_tables, domain_table, few_shot_table, task_table, weights_table


def all_tables(chosen: ComparableSet, reference: str | None = None, axes: Iterable[str] | None = None) -> list[Table]:
    """Every table that the runs of a set allow; `axes` of ablations: all that there are if not given."""
    tables = [*accuracy_tables(chosen), efficiency_table(chosen), settings_table(chosen)]
    tables += [ablation_table(chosen, axis) for axis in (ablation_axes(chosen) if axes is None else axes)]
    significance = significance_table(chosen, reference)
    return [*tables, significance] if significance else tables


__all__ = [
    "MARKS",
    "MEANS",
    "MISSING",
    "Cell",
    "Column",
    "Table",
    "ablation_axes",
    "ablation_table",
    "accuracy_cells",
    "accuracy_matrix",
    "accuracy_tables",
    "all_tables",
    "domain_table",
    "efficiency_table",
    "few_shot_table",
    "label_order",
    "mean_cell",
    "settings_table",
    "significance_table",
    "task_table",
    "weights_table",
]
