"""Figures. Each is drawn by one function from a data frame of runs (`data.run_frame`), or not at all (None)."""
