"""Methods for tests that take long with each, chosen so that no code of ours is left out."""

from methods.peft_library.common import PeftMethod
from methods.registry import all_methods

CHANGED_LAYERS = {"lora", "lily", "gralora", "oft"}
"""Of the tuners of the peft package: LoRA, for all whose layers are peft's own, and those whose layers are changed."""

RUN_IN_A_TRAINING = ("inject", "attachment", "layers", "resolve")
"""What a tuner of the peft package overrides where more than its config is our own."""


def _overrides(method):
    return any(getattr(method, name) is not getattr(PeftMethod, name) for name in RUN_IN_A_TRAINING)


OURS = {name for name, method in all_methods().items() if not issubclass(method, PeftMethod)}
WITH_OWN_LAYERS = sorted(OURS | CHANGED_LAYERS)
WITH_OWN_CODE = sorted(name for name, method in all_methods().items() if name in WITH_OWN_LAYERS or _overrides(method))
"""All but the tuners of the peft package that one class of ours holds as they are."""
