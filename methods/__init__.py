"""PEFT methods: one file each, on timm's own modules. Start at `base.py` (the contract)."""
