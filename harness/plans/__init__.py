"""What to do: experiment files, tuning, and the list of runs that a selection expands to."""
