"""Figures. Each is drawn by one function from a data frame of runs (`data.run_frame`), or not at all (None)."""

from analysis.figures.beside_published import published_scatter
from analysis.figures.gallery import Drawing, drawings
from analysis.figures.style import save, small_png

__all__ = ["Drawing", "drawings", "published_scatter", "save", "small_png"]
