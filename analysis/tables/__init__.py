"""Tables out of comparable sets of runs."""

from analysis.tables.base import MARKS, MEANS, MISSING, Cell, Column, Table, mean_cell
from analysis.tables.cells import accuracy_cells, accuracy_matrix, label_order
from analysis.tables.tasks import accuracy_tables, domain_table, few_shot_table, task_table, weights_table

__all__ = [
    "MARKS",
    "MEANS",
    "MISSING",
    "Cell",
    "Column",
    "Table",
    "accuracy_cells",
    "accuracy_matrix",
    "accuracy_tables",
    "domain_table",
    "few_shot_table",
    "label_order",
    "mean_cell",
    "task_table",
    "weights_table",
]
