"""What is to be done: specs, protocols, and the lists of runs that a selection amounts to."""
