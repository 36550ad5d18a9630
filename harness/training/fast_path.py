"""Work that a training or an evaluation leaves out because it changes nothing.

- What lies in front of the first trained parameter is computed once, where it is the same in every step: all but the
  head for a linear probe, some blocks for a method that starts behind them.
- Behind its last attention, a ViT that is classified by its class token computes that token alone.

Both need two things, whatever the method is called. First, the model keeps nothing from one pass to the next
(`methods.blocks.keeps_nothing`): with a tape, a count or a running mean, what a pass gives would depend on passes that
are left out, and on those that ask. Second, the model itself, asked with other numbers in what is trained, gives the
same results. They can differ by rounding only, where torch sums a matrix product of fewer rows in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness import device as devices
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from methods.architectures import architecture_of
from methods.base import Attachment
from methods.blocks import CutPoint, cut_points, keeps_nothing, plug, unplug

MOST_BYTES = 2 * 2**30
"""What a training keeps of its images at most, on the device."""

ASKED = 4
"""Images that the model is asked with."""

Answer = TypeVar("Answer")
Penalty = Callable[[], Tensor] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPlan:
    """How a training gets from its images to logits."""

    forward: Callable[[Tensor], Tensor]
    """From normalised images [B, 3, H, W], or from rows of `inputs`, to logits [B, classes]."""

    inputs: Tensor | None = None
    """What the model makes of each image up to `start`, [N, ...]; None if `forward` takes images."""

    start: str = ""
    """`CutPoint.name` of where `forward` starts; empty if it takes images."""


@contextmanager
def open_plan(
    model: Any, attachment: Attachment, images: Tensor, preprocessing: Preprocessing, recipe: Recipe, precision: str
) -> Iterator[ForwardPlan]:
    """The shortest path for a training on these images, uint8 [N, H, W, 3] on the model's device. Leaves the random
    generators, and when it is closed the model, as they were."""
    few, penalty = preprocessing.normalise(images[:ASKED]), attachment.penalty
    # A step of its own may change what is frozen, or open what is shut; asking would move a state outside of the model.
    if attachment.after_step is not None or attachment.state is not None:
        yield ForwardPlan(forward=model)
        return
    with class_token_alone(model, few, penalty):
        cut = None
        if recipe.augmentation == "none":
            cut = _call_or_none(last_fixed_cut, model, few, precision, penalty, MOST_BYTES // len(images))
        if cut is None:
            yield ForwardPlan(forward=model)
            return
        batches = map(preprocessing.normalise, images.split(recipe.batch_size))
        inputs = computed_once(model, cut, batches, len(images), precision)
        yield ForwardPlan(forward=cut.run, inputs=inputs, start=cut.name)


@torch.no_grad()
def last_fixed_cut(
    model: Any, images: Tensor, precision: str, penalty: Penalty = None, most_bytes: int = MOST_BYTES
) -> CutPoint | None:
    """The last passage whose value is the same in every step of a training to come, and from which the model can go on;
    None if there is none. Asked with images [B, 3, H, W].

    The value, at most `most_bytes` per image, is bit for bit that of evaluation mode, no random number is drawn before
    it, and it does not change with the trained parameters. Going on from it by hand gives the logits and the penalty,
    with other numbers in the trained parameters: what starts at zero would hide what it reads.
    """
    if not keeps_nothing(model):
        return None
    places = cut_points(model)

    def outcome(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> list[Tensor]:
        with devices.autocast(precision, images.device):  # one for each pass: within, it keeps weights that it has cast
            return [forward(inputs), *_called(penalty)]

    with _preserve_state(model, images.device):
        begin = devices.random_states(images.device)
        with _record_inputs(places) as heard:
            outcome(model.train(), images)
            outcome(model.eval(), images)
            _perturb_trainable(model)
            devices.set_random_states(begin, images.device)
            expected = outcome(model.train(), images)

        def is_fixed(place: CutPoint) -> bool:
            if len(heard[place.name]) != 3:
                return False
            (value, generators), *others = heard[place.name]
            small = value.nbytes <= most_bytes * len(images)
            return small and _equal(generators, begin) and all(torch.equal(value, other) for other, _ in others)

        found = next((place for place in places if is_fixed(place)), None)
        if found is None:
            return None
        outcome(model, -images)  # a penalty that remembers what it saw last is found out
        devices.set_random_states(begin, images.device)
        again = outcome(found.run, heard[found.name][0][0])
    return found if _equal(again, expected) else None


@torch.no_grad()
def computed_once(model: Any, cut: CutPoint, batches: Iterable[Tensor], count: int, precision: str) -> Tensor:
    """The values [N, ...] at a passage of all `count` images, given in batches [B, 3, H, W] in order."""
    mode, kept, done = model.training, torch.empty(0), 0
    model.eval()
    with _record_inputs([cut]) as heard:
        for images in batches:
            with devices.autocast(precision, images.device):
                model(images)
            value, _ = heard[cut.name].pop()
            if done == 0:
                kept = value.new_empty(count, *value.shape[1:])
            kept[done : done + len(value)] = value
            done += len(value)
    model.train(mode)
    return kept


class _BehindAttention(nn.Module):
    """Plugged in behind the last attention. x: [B, tokens, d]."""

    stateless = True

    def __init__(self) -> None:
        super().__init__()
        self.change: Callable[[Tensor], Tensor] = _all_tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


def _all_tokens(x: Tensor) -> Tensor:
    return x


def _others_changed(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1], 1 - 2 * x[:, 1:]], dim=1)


def _first_token(x: Tensor) -> Tensor:
    return x[:, :1]


@contextmanager
def class_token_alone(model: Any, images: Tensor, penalty: Penalty = None) -> Iterator[None]:
    """Within, only the class token is computed behind the last attention, if the model keeps nothing, gives the same
    logits and penalty, and draws the same random numbers, then. Asked with images [B, 3, H, W], in the mode, training
    or evaluation, that the model is in."""
    architecture = architecture_of(model)
    if not architecture.reads_class_token(model) or not keeps_nothing(model):
        yield
        return
    last, place = architecture.stages(model)[-1][-1], _BehindAttention()
    plug(last, "after_attention", place)
    try:
        place.change = _first_token if _call_or_none(_is_read_alone, model, place, images, penalty) else _all_tokens
        yield
    finally:
        unplug(last, "after_attention", place)


@torch.no_grad()
def _is_read_alone(model: Any, place: _BehindAttention, images: Tensor, penalty: Penalty) -> bool:
    """Whether nothing behind `place` reads any but the first token, or needs them to be there."""
    with _preserve_state(model, images.device):
        mode, begin = model.training, devices.random_states(images.device)
        _perturb_trainable(model)  # what starts at zero would hide what it reads

        def outcome(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
            place.change = change
            devices.set_random_states(begin, images.device)
            parts = [model.train(mode)(images), *_called(penalty)]
            return torch.cat([part.flatten().float() for part in parts]), devices.random_states(images.device)

        plain, drawn = outcome(_all_tokens)
        if not torch.equal(plain, outcome(_others_changed)[0]):
            return False
        alone, drawn_alone = outcome(_first_token)
        same = torch.allclose(alone, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
        return same and _equal(drawn, drawn_alone)


def _call_or_none(question: Callable[..., Answer], *about: Any) -> Answer | None:
    """What the model answers; None if it fails: it may miss tokens, or what blocks pass by on the side, or refuse the
    numbers that are put into it. If it is broken, the first step says so."""
    try:
        return question(*about)
    except Exception:
        return None


def _called(penalty: Penalty) -> list[Tensor]:
    return [penalty()] if penalty else []


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, some, others))


def _perturb_trainable(model: nn.Module) -> None:
    """Put other numbers into what is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))


@contextmanager
def _preserve_state(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put trained parameters, buffers, mode and random generators back in the end; within, the same random numbers are
    drawn every time."""
    changing = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    kept, mode = [tensor.detach().clone() for tensor in changing], model.training
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        model.train(mode)
        with torch.no_grad():
            for tensor, value in zip(changing, kept, strict=True):
                tensor.copy_(value)


@contextmanager
def _record_inputs(places: Sequence[CutPoint]) -> Iterator[dict[str, list[tuple[Tensor, list[Tensor]]]]]:
    """By place, what comes through in each pass, with the random generators' states then."""
    heard: dict[str, list[tuple[Tensor, list[Tensor]]]] = {place.name: [] for place in places}

    def listener(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: heard[name].append((inputs[0].clone(), devices.random_states(inputs[0].device)))

    handles = [place.entrance.register_forward_pre_hook(listener(place.name)) for place in places]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
