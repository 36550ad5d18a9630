"""Tuners of the `peft` package as methods: each class says which peft config it uses and how much it trains."""
