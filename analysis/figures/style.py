"""How figures look: a colour per family of methods, a marker per method, print sizes, files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

ONE_COLUMN = 3.5
"""Width of a one-column figure in inches."""

TWO_COLUMNS = 7.16
"""Width of a two-column figure in inches."""

FAMILIES = {
    "reparameterisation": "#0173b2",
    "adapter": "#de8f05",
    "selective": "#029e73",
    "prompt": "#b0509f",
    "full": "#c23b22",
    "head": "#8c564b",
}
"""Colour by family of methods: seaborn's colour-blind palette, darker where white paper would swallow it."""

NEUTRAL = "#6f6f6f"
"""Colour of methods whose family is not known, as in old records."""

SHADES = (0.0, -0.4, 0.3)
"""A family's colour comes as it is, darker and lighter, so that its methods can be told apart."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "d", "*", "8", "H")
LINES = ("-", "--", ":", "-.")


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

    @property
    def point_arguments(self) -> dict[str, Any]:
        """Arguments of matplotlib for markers that no line joins."""
        return {"color": self.colour, "ls": "", "marker": self.marker, "mfc": self.face}

    @property
    def line_arguments(self) -> dict[str, Any]:
        """Arguments of matplotlib for markers on a line."""
        return self.point_arguments | {"ls": self.line}


def _shaded(colour: str, shade: float) -> str:
    """Mixed with black below 0, with white above it."""
    end = 1.0 if shade > 0 else 0.0
    red, green, blue = ((1 - abs(shade)) * part + abs(shade) * end for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _looks(families: Mapping[str, str]) -> dict[str, int]:
    """A number below `MOST_LOOKS` for each method, by its family: the one that its name hashes to, unless a method of
    the same family that comes before it in the alphabet has that one or, while there are others, its shape."""
    numbers: dict[str, int] = {}
    for method, family in sorted(families.items()):
        taken = {numbers[other] for other in numbers if families[other] == family}
        shapes = {number % len(MARKERS) for number in taken}
        first = int(hashlib.sha256(method.encode()).hexdigest(), 16) % MOST_LOOKS
        order = [(first + step) % MOST_LOOKS for step in range(MOST_LOOKS)]
        free = [n for n in order if n % len(MARKERS) not in shapes] or [n for n in order if n not in taken] or order
        numbers[method] = free[0]
    return numbers


MOST_LOOKS = len(SHADES) * len(MARKERS)


def style_of(family: str, look: int, variant: int = 0) -> Style:
    """Style of a method of this family; `look` tells the family's methods apart, `variant` the settings of one."""
    return Style(
        colour=_shaded(FAMILIES.get(family, NEUTRAL), SHADES[look // len(MARKERS)]),
        marker=MARKERS[(look + variant // 2) % len(MARKERS)],
        line=LINES[variant % len(LINES)],
        filled=variant % 2 == 0,
    )


def styles(runs: pd.DataFrame) -> dict[str, Style]:
    """Style of each row label. `runs` has the columns `method`, `family` and `label`."""
    families = {str(method): str(family) for method, family in runs.groupby("method")["family"].max().items()}
    looks = _looks(families)
    return {
        str(label): style_of(families[str(method)], looks[str(method)], variant)
        for method, labels in runs.groupby("method")["label"]
        for variant, label in enumerate(sorted(labels.unique()))
    }


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
        figure.set_layout_engine("none")  # the layout is settled, and computing it takes as long as drawing
        figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def small_png(path: Path) -> bytes:
    """The image with a palette of 128 colours: a third of the bytes, for embedding."""
    out = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()
