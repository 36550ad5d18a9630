"""Methods for tests that take long with each, chosen so that no code of ours is left out."""

from methods.peft_library.common import PeftMethod
from methods.registry import all_methods

CHANGED_LAYERS = ["lora", "lily", "gralora", "oft"]
"""Of the tuners of the peft package: LoRA, for all whose layers are peft's own, and those whose layers are changed."""

CHANGED_TRAINING = ["adalora", "eva", "lora_ga", "pissa", "kasa", "frod", "vblora"]
"""Those that start from data or weights, act after a step, or have a penalty or state of their own."""

OF_PEFT = [name for name, method in all_methods().items() if issubclass(method, PeftMethod)]
WITH_OWN_LAYERS = [name for name in all_methods() if name not in OF_PEFT or name in CHANGED_LAYERS]
WITH_OWN_CODE = [*WITH_OWN_LAYERS, *CHANGED_TRAINING]
"""All but tuners of the peft package that one class of ours holds as they are."""
