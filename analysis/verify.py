"""Own records against published numbers, cell by cell: inside or outside the seed spread, and under which conditions.

The rule. A printed number is inside where it could be one more seed of the own runs: within the 95% prediction interval
mean ± t(n-1) · sd · sqrt(1 + 1/n), widened by half a unit of the last digit that is printed; n counts the draws of the
training list where there are several. One seed has no spread and gives no verdict. A number outside is not wrong: the
conditions that differ are named, and may be the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from analysis.columns import target_values
from analysis.comparability import taken_in_part
from analysis.frame import REPLICATE_KEYS, ComparableSet, cell_name
from analysis.literature import FOLDER, PublishedSource, single_values
from analysis.statistics import CONFIDENCE, independent
from analysis.tables.base import Cell, Column, Row, Table, number_cell
from analysis.tables.cells import set_caption, set_title
from harness.errors import HarnessError
from harness.schema.metrics import ACCURACY

RULE = (
    "Inside: the printed number lies in the 95% prediction interval for one more seed, mean ± t(n-1) sd sqrt(1+1/n), "
    "widened by half a unit of its last digit, over n seeds or, where there are several, draws of the training list; "
    "one seed gives no verdict."
)

OTHER_BACKBONE = "other backbone"
"""Instead of a verdict, where the source has no number on the same one."""

MEAN = "mean of the tasks"
"""Row that sums a method up, over the tasks that both have."""

PUBLISHED = Column(name="published")
MEASURED = Column(name="measured", digits=2)
SEEDS = Column(name="seeds", kind="integer")
DIFFERENCE = Column(name="difference", kind="difference")
VERDICT = Column(name="verdict", kind="text")
PRINTED_PARAMETERS = Column(name="params (M) published", kind="text")
PARAMETERS = Column(name="measured params", kind="count")

SELECTION = {
    "test": "published: the best test epoch is kept",
    "mixed": "published: a compilation; where run, the best test epoch is kept",
    "last": "published: the last epoch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """One set of own runs against one source."""

    source: str
    peers: ComparableSet
    table: Table
    differences: list[str]
    """In which conditions the two differ, or may."""


@cache
def conditions() -> dict[str, Any]:
    """What is known of the sources, see the file."""
    file = FOLDER / "conditions.yaml"
    if not file.is_file():
        raise HarnessError(f"no {file}: published numbers are in the repository, not in the package")
    return dict(yaml.safe_load(file.read_text()))


def own_name(printed: str, titles: dict[str, str]) -> str | None:
    """The own method that a source's name stands for: by its title or name, letters' case and hyphens aside."""
    aliases = {_plain(name): method for name, method in conditions()["methods"].items()}
    known = {_plain(title): method for title, method in titles.items()} | {_plain(m): m for m in titles.values()}
    return known.get(_plain(printed)) or aliases.get(_plain(printed))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum() or letter == "+")


def verify(peers: ComparableSet, source: PublishedSource) -> Verification | None:
    """The table of all cells that both have; None without any."""
    quoted, base = _quoted(peers, source)
    runs = peers.rows[peers.rows["status"] == "complete"]
    differences = _differences(peers, source, quoted)
    table = Table(
        name=f"verify_{source.name}",
        title=f"{set_title(peers)}: against {source.name}",
        caption=f"{source.title}, {base}. {RULE} Conditions: {'; '.join(differences)}. {set_caption(peers)}",
        columns=[PUBLISHED, MEASURED, SEEDS, DIFFERENCE, VERDICT, PRINTED_PARAMETERS, PARAMETERS],
        corner="method, task",
    )
    for label, own in runs.groupby("label", sort=False):
        theirs = quoted[quoted["own"] == own["method"].iloc[0]]
        if theirs["same"].any():
            theirs = theirs[theirs["same"]]
        for (name, backbone, same), printed in theirs.groupby(["method", "backbone", "same"], sort=False):
            name = name if same else f"{name} [{backbone}]"
            shown = str(label) if _plain(name) == _plain(str(label)) else f"{label} (printed: {name})"
            table.rows.update({f"{shown}, {task}": cells for task, cells in _rows(own, printed).items()})
    return Verification(source=source.name, peers=peers, table=table, differences=differences) if table.rows else None


def _quoted(peers: ComparableSet, source: PublishedSource) -> tuple[pd.DataFrame, str]:
    """The source's accuracies on the set's suite, one metric; `own`: the own method that each stands for, `same`:
    whether the backbone is the set's."""
    rows = single_values(source, peers.key["suite"])
    base = str(rows["base"].iloc[0]) if len(rows) else ""
    titles = dict(zip(peers.rows["title"], peers.rows["method"], strict=True))
    names, ours = conditions()["backbones"], peers.key
    same = (rows["backbone"].map(names) == ours["backbone"]) & (ours["weights"] != "random")
    return rows.assign(own=rows["method"].map(lambda name: own_name(name, titles)), same=same), base


def _rows(own: pd.DataFrame, printed: pd.DataFrame) -> dict[str, Row]:
    """Cells by task or target and number of shots, and of the mean over them where there are several."""
    masked = any("masked" in backbone for backbone in printed["backbone"])
    scores = {str(cell): runs for cell, runs in _scores(own, masked).groupby("cell", sort=False)}
    values: dict[str, str] = {}
    for dataset, shots, value in zip(printed["dataset"], printed["shots"], printed["value"], strict=True):
        values.setdefault(cell_name(dataset, int(shots)) if shots.isdigit() else dataset, value)
    runs_of = {cell: scores[cell] for cell in values if cell in scores}
    rows = {
        cell: _row(runs.set_index(REPLICATE_KEYS)["accuracy"], values[cell], printed, runs)
        for cell, runs in runs_of.items()
    }
    if len(rows) > 1:
        both = pd.concat(list(runs_of.values()))
        means = both.pivot_table(index=REPLICATE_KEYS, columns="cell", values="accuracy").dropna().mean(axis=1)
        digits = max(_decimals(values[task]) for task in runs_of)
        published = sum(float(values[task]) for task in runs_of) / len(runs_of)
        rows[f"{MEAN} ({len(runs_of)})"] = _row(means, f"{published:.{digits}f}", printed, both)
    return rows


def _scores(own: pd.DataFrame, masked: bool) -> pd.DataFrame:
    """A row per run and set that it was scored on, named by `cell`; `masked`: among a target's own classes alone."""
    scores = [own.assign(cell=[cell_name(task, shots) for task, shots in zip(own["task"], own["shots"], strict=True)])]
    targets = pd.DataFrame([target_values(text, ACCURACY) for text in own["targets"]], index=own.index)
    for name in (name for name in targets if not str(name).endswith("/masked")):
        column = f"{name}/masked" if masked and f"{name}/masked" in targets else name
        cells = [cell_name(str(name), shots) for shots in own["shots"]]
        scores.append(own.assign(cell=cells, accuracy=targets[column]).dropna(subset="accuracy"))
    return pd.concat(scores)


def _row(measured: pd.Series, text: str, printed: pd.DataFrame, runs: pd.DataFrame) -> Row:
    mean, spread = float(measured.mean()), float(measured.std(ddof=1))
    return {
        PUBLISHED.key: number_cell(float(text)),
        MEASURED.key: Cell(value=mean, spread=spread),
        SEEDS.key: number_cell(len(measured)),
        DIFFERENCE.key: number_cell(mean - float(text)),
        VERDICT.key: Cell(text=within_spread(measured, text) if printed["same"].all() else OTHER_BACKBONE),
        PRINTED_PARAMETERS.key: Cell(text=str(printed["params_m"].iloc[0]) or "–"),
        PARAMETERS.key: number_cell(float(runs["parameters"].mean())),
    }


def within_spread(measured: pd.Series, printed: str) -> str:
    """`inside`, `outside` or `one seed`, by the rule of this module. `measured`: accuracies by (split seed, seed);
    `printed`: the number as the source writes it."""
    count = len(independent(measured))
    if count < 2:
        return "one seed" if count else "no seed"
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * measured.std(ddof=1) * np.sqrt(1 + 1 / count)
    reach += 0.5 * 10.0 ** -_decimals(printed)
    return "inside" if abs(float(printed) - measured.mean()) <= reach + 1e-9 else "outside"


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _differences(peers: ComparableSet, source: PublishedSource, quoted: pd.DataFrame) -> list[str]:
    """What is not the same, or not known to be: which split chose, normalisation, precision, images, checkpoint,
    seeds."""
    known = conditions()["sources"].get(source.name, {})
    ours = peers.key
    differences = [
        f"{SELECTION.get(known.get('selection', ''), 'published: selection not known')}, here: {_selection(ours)}"
    ]
    if "settings" in known:
        differences.append(f"published: settings chosen on {known['settings']}")
    theirs, statistics = known.get("statistics", "not known"), str(ours["preprocessing"]).rpartition("-")[2]
    if theirs != statistics:
        differences.append(f"normalisation published: {theirs}, here: {statistics}")
    if (precision := known.get("precision", "not known")) != ours["precision"]:
        differences.append(f"precision published: {precision}, here: {ours['precision']}")
    if "images" in known:
        differences.append(f"published: images stored as {known['images']}")
    if other := taken_in_part(peers.rows):
        differences.append(f"here not the suite's own data: {other}")
    names = conditions()["backbones"]
    for backbone in quoted.loc[quoted["own"].notna(), "backbone"].unique():
        if names.get(backbone) != ours["backbone"] or ours["weights"] == "random":
            differences.append(f"backbone published: {backbone}, here: {ours['backbone']} ({ours['weights']} weights)")
    return [*differences, f"published: {known['seeds']} seed"] if "seeds" in known else differences


def _selection(key: dict[str, Any]) -> str:
    return "the best test epoch" if key["protocol"] == "oracle" else f"the last epoch (protocol {key['protocol']})"


def as_rows(parts: list[Verification]) -> list[dict[str, Any]]:
    """All cells, for a program."""
    return [
        {
            "source": part.source,
            **part.peers.key,
            "cell": cell,
            **{
                column.name: row[column.key].text or (row[column.key].value if row[column.key].is_number else None)
                for column in part.table.columns
            },
            "differences": part.differences,
        }
        for part in parts
        for cell, row in part.table.rows.items()
    ]


def summary(part: Verification) -> str:
    """`vpetl: 57 cells, 31 inside, 26 outside; 19 of another backbone`."""
    verdicts = [row[VERDICT.key].text for cell, row in part.table.rows.items() if MEAN not in cell]
    others = verdicts.count(OTHER_BACKBONE)
    counts = {name: verdicts.count(name) for name in ("inside", "outside", "one seed")}
    parts = [f"{len(verdicts) - others} cells", *(f"{n} {name}" for name, n in counts.items() if n)]
    return f"{part.source}: {', '.join(parts)}" + (f"; {others} of another backbone" if others else "")
