"""How figures look: one colour and one marker per method in all of them, print sizes, files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

ONE_COLUMN = 3.5
"""Width of a one-column figure in inches."""

TWO_COLUMNS = 7.16
"""Width of a two-column figure in inches."""

COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8c564b", "#56b4e9", "#7f7f7f")
"""Seaborn's colour-blind palette without its two pale colours, which white paper swallows."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "*", "8", "H")
LINES = ("-", "--", ":", "-.")

KNOWN = (
    *("linear", "vpt_shallow", "vpt_deep", "adaptformer", "lora", "sct", "full", "bitfit"),
    *("ssf", "adapter_houlsby", "adapter_pfeiffer", "adapter_plus", "norm_tuning", "lora_qv", "partial", "mlp_head"),
    *("fact_tk", "fact_tt", "convpass", "repadapter", "compacter", "consolidator", "bi_adaptformer", "prefix_tuning"),
    *("arc", "difffit", "dtl", "gate_vpt", "gps", "hydra", "lorand", "lst"),
    *("mona", "spt_lora", "vqt", "compose"),
    *("adalora", "adamss", "bdlora", "beft", "boft", "bone", "c3a", "deft", "delora", "dora", "eva"),
    *("fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3", "kasa", "lily", "ln_tuning", "loha"),
    *("lokr", "lora_fa", "lora_ga", "miss", "oft", "olora", "orthogonal_lora", "peanut", "pissa", "psoft"),
    *("pvera", "randlora", "road", "rslora", "shira", "supertuning", "tinylora", "unilora", "vblora", "velora"),
    *("vera", "waveft"),
)
"""Methods with a slot of their own; new ones go to the end, so that the others keep theirs."""

FIRST_FREE = 88
"""Slots from here on are for methods that are not in `KNOWN`, chosen by a hash of the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one row label is drawn."""

    colour: str
    marker: str
    line: str
    """Line style; it tells the variants of one method apart."""

    filled: bool
    """Whether markers are filled; likewise."""

    @property
    def face(self) -> str:
        """Colour inside a marker."""
        return self.colour if self.filled else "white"


def slot(method: str) -> int:
    """The method's number among the pairs of colour and marker; the same in every figure, whatever else is shown."""
    if method in KNOWN:
        return KNOWN.index(method)
    free = len(COLOURS) * len(MARKERS) - FIRST_FREE
    return FIRST_FREE + int(hashlib.sha256(method.encode()).hexdigest(), 16) % free


def style_of(method: str, variant: int = 0) -> Style:
    """Style of a method; `variant` counts its settings where it has several."""
    number = slot(method)
    colour = number % len(COLOURS)
    marker = (colour + number // len(COLOURS) + variant // 2) % len(MARKERS)
    return Style(
        colour=COLOURS[colour], marker=MARKERS[marker], line=LINES[variant % len(LINES)], filled=variant % 2 == 0
    )


def styles(runs: pd.DataFrame) -> dict[str, Style]:
    """Style of each row label. `runs` has the columns `method` and `label`."""
    found = {}
    for method, labels in runs.groupby("method")["label"]:
        for variant, label in enumerate(sorted(labels.unique())):
            found[str(label)] = style_of(str(method), variant)
    return found


@contextmanager
def paper() -> Iterator[None]:
    """Settings of all figures: small print, thin lines, letters that stay letters in a PDF."""
    settings: dict[Any, Any] = {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "axes.linewidth": 0.6,
        "grid.linewidth": 0.5,
        "grid.color": "#dddddd",
        "lines.linewidth": 1.2,
        "lines.markersize": 4,
        "axes.axisbelow": True,
        "pdf.fonttype": 42,
        "figure.constrained_layout.use": True,
    }
    with sns.axes_style("ticks"), mpl.rc_context(settings):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG and PDF below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    with paper():
        figure.savefig(paths[0], dpi=200)
        figure.set_layout_engine("none")  # it stands, and finding it takes as long as drawing
        figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def small_png(path: Path) -> bytes:
    """The picture with a palette of 128 colours: a third of the bytes, for embedding."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()
