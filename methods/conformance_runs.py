"""What a run does with a method beside training it: it counts by role, moves to a device, is stopped and goes on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from methods import testbed
from methods.base import Method
from methods.conformance_tools import (
    changed_names,
    copies,
    on_main_models,
    require,
    some,
    without_data,
)
from methods.kept import all_tensors
from methods.objective import require_sound
from methods.testbed import Attached, attach, small_model

STOP, STEPS = 4, 8
"""Where a training is stopped, and how long it is: with ten steps planned, what a schedule does late is in it."""

OTHER_DEVICE = ("expected device", "same device", "but found at least two devices", "not on the expected")
"""What torch says of operations over two devices."""


@on_main_models
def check_head(method: type[Method], name: str) -> None:
    """The classifier, which the harness trains and counts, stays in its place with its own parameters, unless
    `Attachment.head_width` says that the harness makes another."""
    model = small_model(name)
    head = model.get_classifier()
    own = {id(p): n for n, p in head.named_parameters()}
    if attach(method, model=model).attachment.head_width is not None:
        return
    require(model.get_classifier() is head, "attach replaces the classifier, which the harness trains; plug into it")
    lost = set(own) - {id(p) for p in model.parameters()}
    require(not lost, f"the classifier's own {some({own[key] for key in lost})} is not in the model any more")


@on_main_models
def check_step(method: type[Method], name: str) -> None:
    """What the attachment says of a training step holds: it runs the model as often as declared, the names of features
    and the parameter groups are right, and the penalty is one finite number, also of mixed images."""
    attached = attach(method, name)
    attached.model.get_classifier().requires_grad_(True)
    require_sound(attached.model, attached.attachment)
    if attached.attachment.penalty is None:
        return
    images, labels = testbed.batch()
    for targets in (labels, 0.5 * (one_hot(labels, testbed.CLASSES) + one_hot(labels.flip(0), testbed.CLASSES))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            losses = testbed.objective(attached.model.train(), attached.attachment)(attached.model, images, targets)
        penalty = losses.total - losses.own
        number = penalty.ndim == 0 and bool(penalty.isfinite())
        require(number, f"the penalty is no finite number, but {penalty}, for targets {list(targets.shape)}")


def check_moves(method: type[Method]) -> None:
    """Every tensor that the forward pass needs moves with the model: it is a parameter or a buffer, no plain attribute.

    The model is moved to torch's `meta` device. What torch cannot compute there says nothing.
    """
    attached = attach(method)
    model, images = attached.model.to("meta"), testbed.batch()[0].to("meta")
    for training in (False, True):
        try:
            model.train(training)(images)
        except (RuntimeError, NotImplementedError) as error:
            stays = any(words in str(error) for words in OTHER_DEVICE)
            line = str(error).splitlines()[0]
            require(not stays, f"a tensor stays behind when the model moves: register it as a buffer ({line})")


def check_remember(method: type[Method]) -> None:
    """What `attach` finds in the calibration data goes through `context.remember`, and can be stored."""
    context, looks = testbed.make_context(), 0
    given = context.calibration

    def seen(size: int) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal looks
        looks += 1
        return given(size)

    attach(method, context=dataclasses.replace(context, calibration=seen))
    require(_can_be_stored(context.memory), "`context.memory` holds more than tensors, numbers, texts, lists and dicts")
    if looks:
        attach(method, context=without_data(context.memory))


def _can_be_stored(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int) for key in value) and all(map(_can_be_stored, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_can_be_stored, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _continue_training(attached: Attached, first: int, last: int) -> None:
    """The training steps `first` to `last`, each with random numbers of its own; no optimiser keeps anything."""
    model, own = attached.model.train(), attached.attachment
    for step in range(first, last + 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            total = testbed.objective(model, own)(model, *testbed.batch(seed=step)).total
            if total.requires_grad:
                total.backward()
        with torch.no_grad():
            for parameter in attached.trained().values():
                if parameter.grad is not None:
                    parameter.sub_(1e-2 * parameter.grad)
        if own.after_step:
            own.after_step(step)
        model.zero_grad(set_to_none=True)


def check_resume(method: type[Method]) -> None:
    """A training that is stopped and continued in a fresh model ends with the same bits as one that is not: what is
    carried from step to step is a parameter, a buffer, or in `Attachment.state`."""
    context = testbed.make_context()
    whole = attach(method, context=context)
    own = whole.attachment
    require((own.state is None) == (own.load_state is None), "`state` and `load_state` come together")
    _continue_training(whole, 1, STOP)
    tensors, state = copies(all_tensors(whole.model)), copy.deepcopy(own.state()) if own.state else None
    require(_can_be_stored(state), "`state` gives more than tensors, numbers, texts, lists and dicts")
    memory = copy.deepcopy(context.memory)
    resumed = attach(method, context=dataclasses.replace(testbed.make_context(), memory=memory))
    fresh = all_tensors(resumed.model)
    missing = set(tensors) ^ set(fresh)
    require(not missing, f"{some(missing)} is not there in both a trained and a freshly attached model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            fresh[name].copy_(tensor)
    if resumed.attachment.load_state:
        resumed.attachment.load_state(state)
    for attached in (whole, resumed):
        _continue_training(attached, STOP + 1, STEPS)
    apart = changed_names(all_tensors(whole.model), all_tensors(resumed.model))
    require(
        not apart,
        f"stopped and resumed it trains differently in {some(apart)}: what penalty, after_step or a module carries "
        "from step to step must be a parameter, a buffer, or in `state` and `load_state`",
    )


RUN_CHECKS = {
    "head": check_head,
    "step": check_step,
    "moves": check_moves,
    "remember": check_remember,
    "resume": check_resume,
}
