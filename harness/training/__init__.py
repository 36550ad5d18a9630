"""One run, from its spec to its record: train, evaluate, cost, resume, and do again."""
