"""Small real timm models and a few training steps, for conformance checks and tests."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from methods.architectures import KINDS, prepare
from methods.base import Attachment, Context, Method, MethodError
from methods.blocks import replace_classifier
from methods.kept import checksums, kept_tensors
from methods.objective import Objective
from methods.registry import parameters_on

CLASSES = 4


def _liven(model: nn.Module) -> nn.Module:
    """Freeze, and replace a fresh model's tiny weights, zero biases and unit norms by values such as training leaves,
    so that no gradient vanishes by accident."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)
    return model.requires_grad_(False).eval()


MODELS = {model: kind for kind in KINDS.values() for model in kind.small}
"""The small models that every method is checked on by name, with the kind of each."""

VARIANTS = {model: kind for kind in KINDS.values() for model in kind.variants}
"""The further small models."""


def standing_for(kind: str) -> str:
    """Name of the small model that stands for a kind."""
    return next(iter(KINDS[kind].small))


def small(model: str, **arguments: Any) -> Any:
    """A small real timm model, frozen, with a head of its own; with these arguments in place of the model's own."""
    kind = (MODELS | VARIANTS)[model]
    name, own = {**kind.small, **kind.variants}[model]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = timm.create_model(name, num_classes=CLASSES, **{**own, **arguments})
    prepare(built)
    return _liven(built)


def small_vit(**arguments: Any) -> Any:
    """A ViT of three blocks of 32 channels."""
    return small("vit", **arguments)


def small_swin() -> Any:
    """A Swin of two stages of two blocks, 24 and 48 channels."""
    return small("swin")


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and keeps them in `tensors`."""

    def __init__(self, file: io.BytesIO) -> None:
        pickle.Pickler.__init__(self, file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        """Place of a tensor in `tensors`; a small model shares none."""
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts copies of the tensors back."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        pickle.Unpickler.__init__(self, file)
        self.tensors = tensors

    def persistent_load(self, place: Any) -> Tensor:
        own: Tensor = copy.deepcopy(self.tensors[place])
        return own


@cache
def _pickled(model: str) -> tuple[bytes, list[Tensor]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(small(model))
    return file.getvalue(), pickler.tensors


def small_model(model: str) -> Any:
    """A fresh copy of the small model of that name, in a tenth of the time that `copy.deepcopy` takes."""
    body, tensors = _pickled(model)
    return _Unpickler(io.BytesIO(body), tensors).load()


def batch(size: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images [size, 3, 32, 32] and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % CLASSES


def make_context(images: Tensor | None = None, labels: Tensor | None = None, seed: int = 0, steps: int = 10) -> Context:
    """A context whose calibration data are the given images (random ones if not given), on their device."""
    if images is None or labels is None:
        images, labels = batch()
    return Context(
        num_classes=CLASSES,
        device=images.device,
        generator=torch.Generator().manual_seed(seed),
        total_steps=steps,
        calibration=lambda size: zip(images.split(size), labels.split(size), strict=True),
    )


@dataclass
class Attached:
    """A small model with a method on it."""

    model: Any
    attachment: Attachment
    lr: float
    """The method's own learning rate."""

    plain_buffers: frozenset[str]
    """Names of the buffers that were there before."""

    head: frozenset[str] = frozenset()
    """Names of the parameters that were the classifier's before: the harness's own. What a method plugs into the
    classifier is the method's, here as in a run."""

    untouched: Mapping[int, int] = field(default_factory=dict)
    """Checksums of the model before."""

    memory: Mapping[str, Any] = field(default_factory=dict)
    """What the method remembers."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, head excluded."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad and n not in self.head}

    def state(self) -> dict[str, Tensor]:
        """What a run keeps beside `memory`, head excluded."""
        kept = kept_tensors(self.model, self.untouched, self.attachment)
        return {n: t.detach() for n, t in kept.items() if n not in self.head}

    def logits(self) -> Tensor:
        """Logits of fixed random images in eval mode."""
        self.model.eval()
        with torch.no_grad():
            logits: Tensor = self.model(batch()[0])
        return logits


def model_for(method: type[Method]) -> str:
    """The small model to check a method on: a ViT where it serves it."""
    return standing_for("vit" if "vit" in method.serves else min(method.serves))


def main_models(method: type[Method]) -> list[str]:
    """The small models on which a method is checked thoroughly: a ViT and a Swin, or else one that it serves."""
    return [standing_for(kind) for kind in ("vit", "swin") if kind in method.serves] or [model_for(method)]


def is_served(method: type[Method], name: str) -> bool:
    """Whether the method, in its default configuration, says that it serves this small model."""
    try:
        parameters_on(method(), small_model(name))
    except MethodError:
        return False
    return True


def attach(
    method: type[Method],
    name: str | None = None,
    seed: int = 0,
    model: Any = None,
    config: Any = None,
    context: Context | None = None,
) -> Attached:
    """The method, in its default configuration if none is given, on a fresh small model, with a context of that seed
    if none is given."""
    model = small_model(name or model_for(method)) if model is None else model
    buffers = frozenset(n for n, _ in model.named_buffers())
    head = {id(p) for p in model.get_classifier().parameters()}
    untouched, context = checksums(model), context or make_context(seed=seed)
    attachment = method(config).attach(model, context)
    if attachment.head_width is not None:
        classifier = replace_classifier(model, attachment.head_width, torch.Generator().manual_seed(0))
        head = {id(p) for p in _liven(classifier).parameters()}
    names = frozenset(n for n, p in model.named_parameters() if id(p) in head)
    lr = float(method.recipe.get("lr", 1e-3))
    return Attached(model, attachment, lr, buffers, names, untouched, context.memory)


def separable(size: int = 16) -> tuple[Tensor, Tensor]:
    """Images [size, 3, 32, 32] whose classes differ by a pattern much stronger than the noise, and labels."""
    noise, labels = batch(size, seed=2)
    patterns, _ = batch(CLASSES, seed=3)
    return patterns[labels] + 0.1 * noise, labels


def task_loss(model: Any, data: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of the data."""
    return cross_entropy(model(data[0]).float(), data[1])


def objective(model: Any, attachment: Attachment) -> Objective:
    """The loss of a step, cross-entropy in float32."""
    return Objective(model=model, attachment=attachment, loss=cross_entropy)


def _optimizer(trained: Iterable[nn.Parameter], own: Attachment, lr: float) -> torch.optim.Optimizer:
    """AdamW, with the attachment's factors of the learning rate."""
    factor_of = {id(p): group.lr_factor for group in own.groups for p in group.parameters}
    by_factor: dict[float, list[nn.Parameter]] = {}
    for parameter in trained:
        by_factor.setdefault(factor_of.get(id(parameter), 1.0), []).append(parameter)
    return torch.optim.AdamW([{"params": members, "lr": factor * lr} for factor, members in by_factor.items()])


def train(
    attached: Attached, steps: int = 3, lr: float = 1e-2, data: tuple[Tensor, Tensor] | None = None, plain: bool = False
) -> set[str]:
    """A few steps of AdamW on the trained parameters, head excluded; returns the names that got a non-zero gradient.

    The same seed precedes every training, and the global stream is left alone. `plain` leaves out what the attachment
    adds to a step.
    """
    model, (images, labels) = attached.model, data or batch()
    trained, moved = attached.trained(), set()
    own = Attachment() if plain else attached.attachment
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = _optimizer(trained.values(), own, lr) if trained else None
        for step in range(1, steps + 1):
            total = objective(model, own)(model, images, labels).total
            if optimizer is None:
                break
            total.backward()
            moved |= {n for n, p in trained.items() if p.grad is not None and bool((p.grad != 0).any())}
            optimizer.step()
            if own.after_step:
                own.after_step(step)
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    return moved
