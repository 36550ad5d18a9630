"""Figures. Each is drawn by one function from a data frame of runs (`data.run_frame`), or not at all (None)."""

from analysis.figures.gallery import Drawing, drawings
from analysis.figures.reproduction import reproduction_scatter
from analysis.figures.style import save, small_png

__all__ = ["Drawing", "drawings", "reproduction_scatter", "save", "small_png"]
