"""Tables out of comparable sets of runs."""

from dataclasses import dataclass

from analysis.frame import OPENED_OFTEN, ComparableSet
from analysis.tables.base import Table
from analysis.tables.efficiency import efficiency_table
from analysis.tables.settings import ablation_axes, ablation_table, settings_table, shown, tuning_table
from analysis.tables.significance import significance_table
from analysis.tables.tasks import result_tables
from harness.errors import HarnessError, did_you_mean
from harness.schema.metrics import Metric


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a reader may choose."""

    reference: str | None = None
    """Method that the others are tested against; `linear`, else the best, if not given."""

    axes: tuple[str, ...] | None = None
    """Settings to show ablations over; all that differ if not given."""

    metric: Metric | None = None
    """What the tables show, and by which they rank, mark and test; the set's if not given."""


ALL_TABLES = TableOptions()


def check_options(sets: list[ComparableSet], options: TableOptions) -> None:
    """`HarnessError` for a reference or an axis that none of the sets has."""
    names = {name for peers in sets for column in ("label", "method") for name in peers.rows[column]}
    plain = {name.removesuffix(f" {OPENED_OFTEN}") for name in names}
    if options.reference and options.reference.casefold() not in {name.casefold() for name in names | plain}:
        raise HarnessError(f"no method {options.reference!r}. {did_you_mean(options.reference, sorted(plain))}")
    axes = {shown(axis) for peers in sets for axis in ablation_axes(peers)} if options.axes else set()
    for axis in options.axes or ():
        if axis not in axes:
            known = did_you_mean(axis, sorted(axes))
            raise HarnessError(f"no method ran with two values of {axis!r} and all else equal. {known}")


def all_tables(peers: ComparableSet, options: TableOptions = ALL_TABLES) -> list[Table]:
    """Every table that the runs of a set allow. An axis of `options` that the set lacks is passed over."""
    peers = peers.by(options.metric) if options.metric else peers
    axes = ablation_axes(peers)
    tuning = tuning_table(peers)
    tables = [*result_tables(peers), efficiency_table(peers), settings_table(peers), *([tuning] if tuning else [])]
    tables += [ablation_table(peers, axis) for axis in axes if options.axes is None or shown(axis) in options.axes]
    significance = significance_table(peers, options.reference)
    return [*tables, significance] if significance else tables
