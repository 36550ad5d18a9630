"""Which tensors of a file are the backbone's, under names that timm's checkpoint filters know."""

from harness.errors import HarnessError
from methods.architectures import KINDS
from methods.architectures.base import State

_BY_TIMM = ("visual.", "vision_encoder.")
"""Prefixes that timm's own filters take away."""

_HEADS = ("head", "fc", "classifier", "cls_classifier", "distillation_classifier", "dino_head", "ibot_head")
_BESIDE = (*_HEADS, "projector", "predictor", "momentum_encoder", "decoder")
"""What may stand beside a backbone in a training's checkpoint, and is no part of it."""


def as_timm(state: State, file: str) -> State:
    """The backbone's tensors under names that timm's checkpoint filters know; names that none knows stay.

    `HarnessError` if a prefix leaves open which tensors are the backbone's.
    """
    state = _without_prefix(state, file)
    layouts = (layout for known in KINDS.values() for layout in known.layouts)
    layout = next((layout for layout in layouts if layout.marker in state), None)
    return state if layout is None else layout.to_timm(state)


def _prefixes(state: State) -> set[str]:
    """What precedes the name of a first layer or of a layout's marker."""
    firsts = {known.first_layer for known in KINDS.values()}
    firsts |= {layout.marker for known in KINDS.values() for layout in known.layouts}
    return {name.removesuffix(first) for first in firsts for name in state if name.endswith(first)}


def _without_prefix(state: State, file: str) -> State:
    """The tensors of the one backbone in a training's checkpoint, whatever name it has there (`backbone.`, `vit.`)."""
    prefixes = {p for p in _prefixes(state) if not p.startswith(_BY_TIMM) and p.partition(".")[0] not in _BESIDE}
    if not prefixes or "" in prefixes:
        return state
    if len(prefixes) > 1:
        raise HarnessError(
            f"{file} holds several models, under {' and '.join(map(repr, sorted(prefixes)))}: store the weights of "
            "the one to use alone"
        )
    prefix = prefixes.pop()
    parent = prefix[: prefix[:-1].rfind(".") + 1]
    rest = [n for n in state if not n.startswith(prefix) and n.removeprefix(parent).partition(".")[0] not in _BESIDE]
    if rest:
        raise HarnessError(
            f"{file}: the backbone's names begin with {prefix!r}, but there is more beside it that is neither backbone "
            f"nor head ({len(rest)} names: {', '.join(rest[:3])}): store the backbone's weights alone"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
