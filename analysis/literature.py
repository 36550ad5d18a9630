"""Numbers that papers print (`results/published/*.csv`), as tables of their own: never merged with own runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.frame import ComparableSet, known_tasks
from analysis.tables.base import (
    MEANS,
    MISSING,
    Cell,
    Column,
    ColumnKey,
    Row,
    Table,
    mean_cell,
    number_cell,
    value_column,
)
from analysis.tables.significance import significance_of
from harness.errors import HarnessError, did_you_mean
from harness.schema.metrics import ACCURACY
from suites import SUITES

FOLDER = Path(__file__).parent.parent / "results" / "published"
"""In the checkout; an installed copy has none."""

VTAB = "vtab1k"

STATED = "as stated"
"""Header above averages that the source prints itself."""


@dataclass(frozen=True, slots=True)
class PublishedSource:
    """One file of published numbers."""

    name: str
    """Stem of the file."""

    rows: pd.DataFrame
    """All columns as text, digit for digit; `metric` is split into `base` and `part` (an average, or empty)."""

    @property
    def title(self) -> str:
        """Paper or repository."""
        return str(self.rows["source"].iloc[0])


def load(folder: Path = FOLDER) -> dict[str, PublishedSource]:
    """All sources by name. `HarnessError` if there are none."""
    sources = {path.stem: PublishedSource(path.stem, _read(path)) for path in sorted(folder.glob("*.csv"))}
    if not sources:
        raise HarnessError(f"no published numbers in {folder}: they are in the repository, not in the package")
    return sources


def _read(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    metric = rows["metric"].str.partition(":")
    table = rows["table"].where(~rows["table"].str.endswith("_result.json"), "files *_result.json")  # a file per column
    return rows.assign(base=metric[0], part=metric[2], shown_in=table, label=_labels(rows))


def _labels(rows: pd.DataFrame) -> pd.Series:
    """Method, with the backbone (its remarks left out) where it is not the one that most rows of its table have."""
    short = rows["backbone"].str.replace(r" \(.*\)", "", regex=True)
    usual = rows.groupby(["table", "suite"])["backbone"].transform(lambda backbones: backbones.mode().iloc[0])
    return rows["method"].where(rows["backbone"] == usual, rows["method"] + " [" + short + "]")


def source(name: str) -> PublishedSource:
    """The source of that name. `HarnessError` names the known ones."""
    sources = load()
    if name not in sources:
        raise HarnessError(f"no published source {name!r}. {did_you_mean(name, list(sources))}")
    return sources[name]


def single_values(published: PublishedSource, suite: str) -> pd.DataFrame:
    """Rows of the suite that are no averages, of the first metric."""
    rows = published.rows[(published.rows["suite"] == suite) & (published.rows["part"] == "")]
    rows = rows[rows["dataset"] != "ALL"]
    return rows[rows["base"] == rows["base"].iloc[0]] if len(rows) else rows


def matrix(published: PublishedSource, suite: str = VTAB) -> pd.DataFrame:
    """Methods x data sets of the first table of a source."""
    rows = single_values(published, suite)
    rows = rows[rows["table"] == rows["table"].iloc[0]] if len(rows) else rows
    values = rows.assign(value=rows["value"].astype(float)).pivot(index="label", columns="dataset", values="value")
    return values.reindex(index=rows["label"].unique(), columns=rows["dataset"].unique())


REPRINTED = {VTAB: "vpetl"}
"""Suite to the source that quotes most methods on it, for the figure of published against measured accuracy."""

PRINTED_AS = {
    "full": "Full fine-tuning",
    "linear": "Linear probing",
    "adapter_pfeiffer": "Adapter",
    "ssf": "SSF [ViT-B/16 in21k AugReg]",
    "fact_tk": "FacT",
}
"""Own methods whose titles are not what that source prints. V-PETL's Adapter and FacT are Pfeiffer's and FacT-TK."""


def measured_beside(measured: ComparableSet) -> pd.DataFrame | None:
    """Pairs of a published and a measured test accuracy for the same method and task; None without any.

    Columns `method`, `family`, `label` (variants of a method stay apart), `task`, `published`, `measured` (mean over
    seeds). Protocols and backbones may differ: the figure shows by how much numbers agree, it does not mix them.
    """
    suite = measured.key["suite"]
    if suite not in REPRINTED or not FOLDER.is_dir():
        return None
    quoted = matrix(source(REPRINTED[suite]), suite).rename_axis("printed").reset_index()
    quoted = quoted.melt(id_vars="printed", var_name="task", value_name="published").dropna()
    rows = measured.rows[(measured.rows["status"] == "complete") & (measured.rows["split"] == "test")]
    groups = rows.groupby(["method", "title", "label", "task"])
    means = groups.agg(measured=(ACCURACY.name, "mean"), family=("family", "max")).reset_index()
    means["printed"] = means["method"].map(PRINTED_AS).fillna(means["title"])
    pairs = means.merge(quoted, on=["printed", "task"])
    return pairs if len(pairs) else None


def tables(published: PublishedSource) -> list[Table]:
    """The source's tables as they stand, with both averages where all tasks of a suite are there."""
    return [_table(published, rows) for _, rows in published.rows.groupby(["suite", "shown_in", "base"], sort=False)]


def _columns(rows: pd.DataFrame) -> dict[tuple[str, str, str], Column]:
    """(data set, shots, part) to column: data sets in the suite's order, then averages that the source states."""
    suite = str(rows["suite"].iloc[0])
    groups = {name: task.group for name, task in known_tasks(suite).items()}
    order = {name: position for position, name in enumerate(groups)}
    several = rows[rows["part"] == ""].groupby("label")["shots"].nunique().gt(1).any()
    columns = {}
    single = rows[(rows["part"] == "")].drop_duplicates(["dataset", "shots"] if several else ["dataset"])
    for row in sorted(single.itertuples(), key=lambda row: order.get(str(row.dataset), len(order))):
        shots = str(row.shots) if several else ""
        name = shots if several else str(row.dataset)
        group = str(row.dataset) if several else groups.get(str(row.dataset), "")
        columns[str(row.dataset), shots, ""] = value_column(ACCURACY, name, group=group)
    for part in rows["part"].unique():
        if part and not part.endswith("_computed"):
            columns["ALL", "", str(part)] = value_column(ACCURACY, str(part).removesuffix("_stated"), 1, group=STATED)
    return columns


def _average_columns(columns: dict[tuple[str, str, str], Column], suite: str) -> list[Column]:
    """Averages computed here: both of them for a suite whose tasks are all there, else one over all columns."""
    values = [key for key in columns if not key[2]]
    if suite in SUITES and set(known_tasks(suite)) == {dataset for dataset, _, _ in values}:
        groups = (*SUITES[suite].groups(), "tasks", "groups") if len(SUITES[suite].groups()) > 1 else ("tasks",)
        return [value_column(ACCURACY, name, 1, group=MEANS) for name in groups]
    return [value_column(ACCURACY, "all", 1, group=MEANS)] if len(values) > 1 else []


def _averages(cells: dict[ColumnKey, Cell], columns: list[Column]) -> Row:
    by_group: dict[str, list[Cell]] = {}
    for (group, _), cell in cells.items():
        by_group.setdefault(group, []).append(cell)
    means = {group: mean_cell(members) for group, members in by_group.items()}
    everything = mean_cell(cells.values())
    means |= {"groups": mean_cell(means.values()), "tasks": everything, "all": everything}
    return {column.key: means[column.name] for column in columns}


def _table(published: PublishedSource, rows: pd.DataFrame) -> Table:
    suite, base = str(rows["suite"].iloc[0]), str(rows["base"].iloc[0])
    columns, first = _columns(rows), rows.iloc[0]
    singles = {key: column for key, column in columns.items() if not key[2]}
    stated = {key: column for key, column in columns.items() if key[2]}
    averages = _average_columns(columns, suite)
    parameters = Column(name="params (M)", kind="text")
    table = Table(
        name=published.name,
        title=f"{published.title}, {first['shown_in']}, {suite}, {base}",
        caption=f"Published numbers, quoted; averages under '{MEANS}' are computed here. {first['protocol']} "
        f"Backbone {rows['backbone'].mode().iloc[0]} unless a row says another. params: as printed.",
        columns=[*singles.values(), *averages, *stated.values(), parameters],
    )
    values = {
        (str(r.label), str(r.dataset), str(r.shots), str(r.part)): number_cell(float(str(r.value)))
        for r in rows.itertuples()
    }
    values |= {(label, dataset, "", part): cell for (label, dataset, _, part), cell in values.items()}
    for label, same in rows.groupby("label", sort=False):
        cells = {column.key: values.get((str(label), *key), MISSING) for key, column in columns.items()}
        printed = {column.key: cells[column.key] for column in singles.values()}
        size = Cell(text=str(same["params_m"].iloc[0]) or "–")
        table.rows[str(label)] = cells | _averages(printed, averages) | {parameters.key: size}
    return table


def significance(published: PublishedSource, reference: str) -> Table:
    """Ranks and paired tests on the source's own table. `HarnessError` if the reference is not in it."""
    values = matrix(published)
    names = {label.casefold(): label for label in values.dropna().index}
    if reference.casefold() not in names:
        raise HarnessError(
            f"{published.name} has no row {reference!r} with all tasks. There are: {', '.join(values.index)}"
        )
    label = names[reference.casefold()]
    return significance_of(
        values,
        label,
        ACCURACY,
        name=f"{published.name}_significance",
        title=f"{published.title}, {VTAB}: significance against {label}",
        caption="Computed from the published table alone. ",
    )
