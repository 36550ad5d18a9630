"""The harness: from a plan of runs to one honest record per run. The way of the data is in `README.md`."""
