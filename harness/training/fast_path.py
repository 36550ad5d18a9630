"""Work that a training or an evaluation leaves out because it changes nothing.

- What lies before the first trained parameter is computed once and cached, where it is the same in every step: all but
  the head for a linear probe, some blocks for a method that starts after them.
- After its last attention, a ViT that is classified by its class token computes that token alone.

Both need two things, whatever the method. First, the model keeps nothing from one pass to the next
(`methods.blocks.keeps_nothing`): with a tape, a count or a running mean, a pass would depend on passes that are left
out, and on those that probe. Second, the model itself, probed with other numbers in what is trained, gives the same
results. They can differ by rounding only, where torch sums a matrix product of fewer rows in another order.
"""

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
"""Most bytes of cached features that a training keeps on the device."""

PROBE_IMAGES = 4
"""Images that the model is probed with."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPlan:
    """How a training gets from its images to logits."""

    forward: Callable[[Tensor], Tensor]
    """From normalised images [B, 3, H, W], or from rows of `inputs`, to logits [B, classes]."""

    inputs: Tensor | None = None
    """Cached features: what the model makes of each image up to `start`, [N, ...]; None if `forward` takes images."""

    start: str = ""
    """`CutPoint.name` of where `forward` starts; empty if it takes images."""


@contextmanager
def open_plan(
    model: Any, attachment: Attachment, images: Tensor, preprocessing: Preprocessing, recipe: Recipe, precision: str
) -> Iterator[ForwardPlan]:
    """The shortest plan for a training on these images, uint8 [N, H, W, 3] on the model's device. Leaves the random
    generators, and when it is closed the model, as they were."""
    few = preprocessing.normalise(images[:PROBE_IMAGES])
    # A penalty may read anything, `after_step` change or unfreeze what is frozen, and probing would move a state that
    # lies outside of the model.
    if attachment.penalty is not None or attachment.after_step is not None or attachment.state is not None:
        yield ForwardPlan(forward=model)
        return
    with class_token_alone(model, few):
        cut = None
        if recipe.augmentation == "none":
            cut = _call_or_none(last_fixed_cut, model, few, precision, MOST_BYTES // len(images))
        if cut is None:
            yield ForwardPlan(forward=model)
            return
        batches = map(preprocessing.normalise, images.split(recipe.batch_size))
        inputs = cache_features(model, cut, batches, len(images), precision)
        yield ForwardPlan(forward=cut.run, inputs=inputs, start=cut.name)


@torch.no_grad()
def last_fixed_cut(model: Any, images: Tensor, precision: str, most_bytes: int = MOST_BYTES) -> CutPoint | None:
    """The last cut point whose value is the same in every step of a training to come, and from which the model can go
    on; None if there is none. Probed with images [B, 3, H, W].

    The value, at most `most_bytes` per image, is bit for bit that of evaluation mode, no random number is drawn before
    it, and it does not change with the trained parameters. Going on from it gives the logits, with other numbers in the
    trained parameters: what starts at zero would hide what it reads.
    """
    if not keeps_nothing(model):
        return None
    with preserved_state(model, images.device):
        cuts = cut_points(model)  # the last comes first
        probe = Probe(model, cuts, images, precision)
        for cut in cuts:
            if probe.is_constant(cut, most_bytes) and probe.rng_untouched(cut) and probe.replays(cut):
                return cut
    return None


class Probe:
    """A model after three passes over the same images: as in training, in evaluation mode, and as in training with
    other numbers in the trained parameters, which it then keeps."""

    def __init__(self, model: Any, cuts: Sequence[CutPoint], images: Tensor, precision: str) -> None:
        self.model, self.images, self.precision = model, images, precision
        self.begin = devices.random_states(images.device)
        with _record_inputs(cuts) as self.inputs:
            self._run(model.train(), images)
            self._run(model.eval(), images)
            _perturb_trainable(model)
            devices.set_random_states(self.begin, images.device)
            self.expected = self._run(model.train(), images)

    def is_constant(self, cut: CutPoint, most_bytes: int) -> bool:
        """Whether each pass came through once with the same value, of at most so many bytes per image."""
        values = [value for value, _ in self.inputs[cut.name]]
        same = len(values) == 3 and all(torch.equal(values[0], value) for value in values[1:])
        return same and values[0].nbytes <= most_bytes * len(self.images)

    def rng_untouched(self, cut: CutPoint) -> bool:
        """Whether no random number was drawn before the cut point."""
        _, generators = self.inputs[cut.name][0]
        return _equal(generators, self.begin)

    def replays(self, cut: CutPoint) -> bool:
        """Whether going on from the recorded value gives the same logits. A pass over other images comes between: what
        remembers the images that it saw last gives others."""
        self._run(self.model, -self.images)
        devices.set_random_states(self.begin, self.images.device)
        return torch.equal(self._run(cut.run, self.inputs[cut.name][0][0]), self.expected)

    def _run(self, forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Logits of one pass."""
        with devices.autocast(self.precision, inputs.device):  # one for each pass: within, it keeps weights it has cast
            return forward(inputs)


@torch.no_grad()
def cache_features(model: Any, cut: CutPoint, batches: Iterable[Tensor], count: int, precision: str) -> Tensor:
    """The values [N, ...] at a cut point of all `count` images, given in batches [B, 3, H, W] in order."""
    mode, features, done = model.training, torch.empty(0), 0
    model.eval()
    with _record_inputs([cut]) as heard:
        for images in batches:
            with devices.autocast(precision, images.device):
                model(images)
            value, _ = heard[cut.name].pop()
            if done == 0:
                features = value.new_empty(count, *value.shape[1:])
            features[done : done + len(value)] = value
            done += len(value)
    model.train(mode)
    return features


class _AfterAttention(nn.Module):
    """Plugged in after the last attention. x: [B, tokens, d]."""

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
def class_token_alone(model: Any, images: Tensor) -> Iterator[None]:
    """Within, only the class token is computed after the last attention, if the model keeps nothing and then gives the
    same logits and draws the same random numbers. Probed with images [B, 3, H, W], in the mode, training or
    evaluation, that the model is in."""
    architecture = architecture_of(model)
    if not architecture.reads_class_token(model) or not keeps_nothing(model):
        yield
        return
    last, place = architecture.stages(model)[-1][-1], _AfterAttention()
    plug(last, "after_attention", place)
    try:
        place.change = _first_token if _call_or_none(_is_read_alone, model, place, images) else _all_tokens
        yield
    finally:
        unplug(last, "after_attention", place)


@torch.no_grad()
def _is_read_alone(model: Any, place: _AfterAttention, images: Tensor) -> bool:
    """Whether nothing after `place` reads any but the first token, or needs the others to be there."""
    with preserved_state(model, images.device):
        mode, begin = model.training, devices.random_states(images.device)
        _perturb_trainable(model)  # what starts at zero would hide what it reads

        def outcome(change: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
            place.change = change
            devices.set_random_states(begin, images.device)
            return model.train(mode)(images).float(), devices.random_states(images.device)

        plain, drawn = outcome(_all_tokens)
        if not torch.equal(plain, outcome(_others_changed)[0]):
            return False
        alone, drawn_alone = outcome(_first_token)
        same = torch.allclose(alone, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
        return same and _equal(drawn, drawn_alone)


def _call_or_none(question: Callable[..., Answer], *about: Any) -> Answer | None:
    """The answer of a probe; None if the model fails under it: it may miss tokens, or what blocks hand on beside the
    residual stream, or refuse the numbers that are put into it. If it is broken, the first step says so."""
    try:
        return question(*about)
    except Exception:
        return None


def _equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, some, others))


def _perturb_trainable(model: nn.Module) -> None:
    """Put other numbers into what is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))


@contextmanager
def preserved_state(model: nn.Module, device: torch.device) -> Iterator[None]:
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
def _record_inputs(cuts: Sequence[CutPoint]) -> Iterator[dict[str, list[tuple[Tensor, list[Tensor]]]]]:
    """By cut point, the value that comes through in each pass, with the random generators' states then."""
    heard: dict[str, list[tuple[Tensor, list[Tensor]]]] = {cut.name: [] for cut in cuts}

    def listener(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: heard[name].append((inputs[0].clone(), devices.random_states(inputs[0].device)))

    handles = [cut.entrance.register_forward_pre_hook(listener(cut.name)) for cut in cuts]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
