"""The contracts that all of the harness shares: what a run is, how it is judged, what it leaves, how it fails."""
