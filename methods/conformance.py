"""What every method must do, whoever wrote it: checks over small real timm models.

Each check takes a method class and raises `NotConforming` with a message that says what is wrong. They are run over the
whole registry by the tests, and over one method (also one outside the repository) by `sctbench check`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import random
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from methods import testbed
from methods.architectures.base import NEEDS
from methods.base import Attachment, Method, MethodError
from methods.conformance_runs import RUN_CHECKS
from methods.conformance_settings import SETTING_CHECKS, check_declared
from methods.conformance_tools import (
    NotConforming,
    changed_names,
    copies,
    moved_by_merging,
    on_main_models,
    relative_gap,
    require,
    some,
    without_data,
)
from methods.kept import all_tensors
from methods.testbed import Attached, attach, model_for, small_model, train


def check_backbones(method: type[Method]) -> None:
    """Every small model is served, or refused with a `MethodError` before anything is changed: by the count where the
    shapes do not fit, and by `attach`. Of each kind in `serves` at least the model that stands for it is served.

    Of what is served, the models that other checks do not try train as many parameters as expected, start at the
    pretrained function or not as declared, give gradients to all that is trained, change nothing else, and keep their
    logits when merged.
    """
    main = testbed.main_models(method)
    for name, kind in testbed.MODELS.items():
        with _blamed(name):
            if not testbed.is_served(method, name):
                stands = kind.name in method.serves and name == testbed.standing_for(kind.name)
                require(not stands, f"{kind.name} is in `serves`, but is refused")
                _check_refused(method, name)
            elif name in main:
                require(bool(attach(method, name).logits().isfinite().all()), "there are no finite logits")
            else:
                _check_served(method, name)


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    try:
        yield
    except NotConforming as failure:
        raise NotConforming(f"on {name}: {failure}") from None


def _check_refused(method: type[Method], name: str) -> None:
    model = small_model(name)
    before = copies(all_tensors(model))
    try:
        attach(method, model=model)
        raised = "nothing"
    except Exception as error:
        raised = type(error).__name__ if not isinstance(error, MethodError) else ""
    require(not raised, f"attach did not raise MethodError, but {raised}: begin it with `require_served`")
    same = set(before) == set(all_tensors(model)) and not changed_names(before, all_tensors(model))
    require(same, "the backbone was changed before it was refused")


def _check_served(method: type[Method], name: str) -> None:
    done = _attempted(method, name)
    require(
        done.count == done.expected, f"{done.count} parameters are trained, expected_parameters says {done.expected}"
    )
    shape = tuple(done.start.shape)
    require(shape == (8, testbed.CLASSES) and bool(done.start.isfinite().all()), "there are no finite logits")
    _require_identity(method, done.start, name)
    require(not done.dead, f"no gradient within six steps for {some(done.dead)}")
    require(not done.changed, f"frozen tensors change during training: {some(done.changed)}")
    if done.attached.attachment.merge is not None:
        _check_merged(method, name, done.attached)


def _attempted(method: type[Method], name: str) -> _Training:
    """Three steps of training. A failure on a kind that has not everything says how to do without the kind."""
    try:
        return three_steps.__wrapped__(method, name)
    except Exception as error:
        missing = sorted(frozenset(NEEDS) - testbed.MODELS[name].offers())
        if not missing:
            raise
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NotConforming(f"{why} (a method that needs {' or '.join(missing)} says so in `needs`)") from error


@on_main_models
def check_parameters(method: type[Method], name: str) -> None:
    """`expected_parameters` on the untouched model is the number of parameters that `attach` trains."""
    model = small_model(name)
    expected = method().expected_parameters(model)
    require(not any(p.requires_grad for p in model.parameters()), "expected_parameters changed the model")
    trained = sum(p.numel() for p in attach(method, model=model).trained().values())
    require(trained == expected, f"{trained} parameters are trained, expected_parameters says {expected}")


@on_main_models
def check_identity(method: type[Method], name: str) -> None:
    """The attached, untrained model computes the pretrained function if and only if the class says so."""
    _require_identity(method, attach(method, name).logits(), name)


def _require_identity(method: type[Method], logits: Tensor, name: str) -> None:
    gap = relative_gap(logits, _plain_logits(name))
    if method.identity_at_start:
        require(gap <= 1e-5, f"identity_at_start is True, but the logits move by {gap:.1e} (relative)")
    else:
        require(gap > 1e-6, "identity_at_start is False, but the untrained model is the pretrained one")


@functools.cache
def _plain_logits(name: str) -> Tensor:
    return Attached(small_model(name), Attachment(), 0.0, frozenset()).logits()


def check_clean(method: type[Method]) -> None:
    """`attach` leaves no hooks, no gradients, the training mode, and the global random streams as they were."""
    model = small_model(model_for(method))
    modules = list(model.modules())
    streams = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    attach(method, model=model)
    require(torch.equal(streams[0], torch.get_rng_state()), "attach draws from torch's global generator")
    require(streams[1:] == (random.getstate(), str(np.random.get_state())), "attach draws from random or numpy")
    require(not any(m.training for m in modules), "attach leaves the backbone in training mode")
    require(all(p.grad is None for p in model.parameters()), "attach leaves gradients behind")
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = [n for n, m in model.named_modules() if any(getattr(m, h) for h in hooks)]
    hooked += [n for n, p in model.named_parameters() if p._backward_hooks]
    require(not hooked, f"attach leaves hooks on {some(hooked)}; plug modules instead (methods/blocks.py)")


def check_deterministic(method: type[Method]) -> None:
    """`attach` depends on the configuration, the generator and the calibration data only."""
    first = attach(method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        second = attach(method)
    changed = changed_names(all_tensors(first.model), all_tensors(second.model))
    require(not changed, f"two attaches with the same seed differ in {some(changed)}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Training:
    """Three steps of training, and what they did."""

    attached: Attached
    """To be looked at, and not changed: it serves several checks."""

    dead: set[str]
    """Names of trained tensors that got no gradient."""

    changed: list[str]
    """Names of tensors that are not trained and changed all the same."""

    expected: int
    """What `expected_parameters` says."""

    count: int
    """How many parameters are trained."""

    start: Tensor
    """Logits before the training."""


@functools.lru_cache(maxsize=2)  # a method's main models, from check to check
def three_steps(method: type[Method], name: str) -> _Training:
    """A training of the method on a small model, done once for all checks that look at one; three steps more if some
    tensor had no gradient."""
    expected, attached = method().expected_parameters(small_model(name)), attach(method, name)
    trained, start = attached.trained(), attached.logits()
    frozen = {n: p for n, p in attached.model.named_parameters() if n not in trained}
    frozen |= {n: b for n, b in attached.model.named_buffers() if n in attached.plain_buffers}
    before = copies(frozen)
    dead = set(trained) - train(attached)
    if dead:  # what is drawn at random may have its first gradient later
        dead -= train(attached)
    changed, count = changed_names(before, all_tensors(attached.model)), sum(p.numel() for p in trained.values())
    return _Training(attached, dead, changed, expected, count, start)


@on_main_models
def check_gradients(method: type[Method], name: str) -> None:
    """Every trained tensor gets a non-zero gradient within three steps, or three more."""
    dead = three_steps(method, name).dead
    require(not dead, f"no gradient within six steps for {some(dead)}")


@on_main_models
def check_frozen(method: type[Method], name: str) -> None:
    """What is not trained stays bit-identical during training."""
    changed = three_steps(method, name).changed
    require(not changed, f"frozen tensors change during training: {some(changed)}")


def check_learns(method: type[Method]) -> None:
    """The loss on a small separable task falls, with the head frozen and the method's own learning rate."""
    attached, data = attach(method), testbed.separable()
    if not attached.trained():
        return
    with torch.no_grad():
        before = float(testbed.task_loss(attached.model, data))
    train(attached, steps=5, lr=attached.lr, data=data)
    with torch.no_grad():
        after = float(testbed.task_loss(attached.model, data))
    require(after < before, f"the loss went from {before:.4f} to {after:.4f} in five steps at lr {attached.lr}")


def check_alone(method: type[Method]) -> None:
    """An image alone gets the logits that it has in a batch, whatever values training gives the parameters."""
    attached, noise = attach(method), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attached.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
        together = attached.logits()
        gap = relative_gap(attached.model(testbed.batch()[0][:1]), together[:1])
    require(gap <= 1e-4, f"an image's logits move by {gap:.1e} (relative) with the other images of its batch")


def check_state(method: type[Method]) -> None:
    """The kept tensors and what is remembered restore the function, bit for bit, on a model that is attached with
    another seed and without the data: nothing but `Attachment.recomputed` follows from anything else."""
    attached = three_steps(method, model_for(method)).attached
    stored = safetensors.torch.save({n: t.contiguous() for n, t in attached.state().items()})
    fresh = attach(method, context=without_data(attached.memory, seed=1))
    targets = all_tensors(fresh.model)
    with torch.no_grad():
        for name, tensor in safetensors.torch.load(stored).items():
            require(name in targets, f"{name} is in the kept state, but not in a freshly attached model")
            require(targets[name].shape == tensor.shape, f"{name} has another shape in a model of another seed")
            targets[name].copy_(tensor)
    gap = relative_gap(fresh.logits(), attached.logits())
    require(
        gap == 0,
        f"the logits of a model restored under another seed differ by {gap:.1e}: what is trained, drawn or chosen must "
        "be a parameter or a buffer, or go through `context.remember`",
    )


def _trained(method: type[Method], name: str) -> Attached:
    attached = attach(method, name)
    train(attached)
    return attached


def check_merge(method: type[Method]) -> None:
    """`merge` leaves the logits, and nothing but the plain timm model; `mergeable` says whether there is one.

    Where the logits move in float32, it is repeated in float64: a large update amplifies the rounding of small models.
    """
    has_merge = attach(method).attachment.merge is not None
    is_there = "there" if has_merge else "not there"
    require(method.mergeable == has_merge, f"mergeable is {method.mergeable}, but merge is {is_there}")
    for name in testbed.main_models(method) if has_merge else ():
        with _blamed(name):
            _check_merged(method, name, _trained(method, name))


def _check_merged(method: type[Method], name: str, attached: Attached) -> None:
    gap = moved_by_merging(attached, torch.float32)
    if gap > 1e-4:
        with contextlib.suppress(RuntimeError):  # modules that compute in float32 whatever comes
            gap = moved_by_merging(_trained(method, name), torch.float64)
    plain = small_model(name)
    modules = {n for n, _ in attached.model.named_modules()} ^ {n for n, _ in plain.named_modules()}
    left = bool(modules) and attached.attachment.merge is not None
    hint = f": {some(modules)} is still there, `unplug` it or `unplug_layer`" if left else ""
    require(gap <= 1e-4, f"the logits move by {gap:.1e} (relative) in merge{hint}")
    if attached.attachment.merge is None:
        return
    require(not modules, f"after merge the modules differ from the plain model's: {some(modules)}")
    sizes = [sum(p.numel() for p in m.parameters()) for m in (attached.model, plain)]
    require(sizes[0] == sizes[1], f"after merge {sizes[0]} parameters are left, the plain model has {sizes[1]}")


def check_isolation(method: type[Method]) -> None:
    """Two models with the method, or with two methods, share nothing."""
    from methods.ssf import SSF  # it changes every layer

    first = attach(method)
    before = copies(all_tensors(first.model))
    second, other = attach(method, seed=1), attach(SSF)
    shared = {t.data_ptr() for t in all_tensors(first.model).values() if t.numel()} & {
        t.data_ptr() for m in (second, other) for t in all_tensors(m.model).values() if t.numel()
    }
    require(not shared, f"{len(shared)} tensors are shared with another model")
    train(second)
    train(other)
    changed = changed_names(before, all_tensors(first.model))
    require(not changed, f"training another model changes {some(changed)}")


def check_deepcopy(method: type[Method]) -> None:
    """A deep copy has equal logits, trains in the same way, and leaves the original alone."""
    attached = attach(method)
    before, logits = copies(all_tensors(attached.model)), attached.logits()
    twin = dataclasses.replace(attached, model=copy.deepcopy(attached.model))
    require(torch.equal(twin.logits(), logits), "the copy computes other logits")
    train(twin, plain=True)
    changed = changed_names(before, all_tensors(attached.model))
    require(not changed, f"training a copy changes the original's {some(changed)}")
    train(attached, plain=True)
    apart = changed_names(attached.trained(), twin.trained())
    require(not apart, f"a copy trains differently in {some(apart)}")


def _gradients(attached: Attached) -> dict[str, Tensor]:
    """Gradients of one training pass under a fixed seed."""
    attached.model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = testbed.task_loss(attached.model, testbed.batch())
        if loss.requires_grad:
            loss.backward()
    return {n: p.grad for n, p in attached.trained().items() if p.grad is not None}


@on_main_models
def check_autocast(method: type[Method], name: str) -> None:
    """A training pass under bf16 autocast gives finite gradients."""
    attached = attach(method, name)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = _gradients(attached)
    bad = [n for n, g in gradients.items() if not bool(g.isfinite().all())]
    require(not bad, f"gradients under bf16 autocast are not finite for {some(bad)}")
    require(bool(gradients) or not attached.trained(), "there are no gradients under bf16 autocast")


def check_checkpointing(method: type[Method]) -> None:
    """Gradient checkpointing gives the same gradients."""
    expected = _gradients(attach(method))
    attached = attach(method)
    attached.model.set_grad_checkpointing()
    gradients = _gradients(attached)
    lost = set(expected) - set(gradients)
    require(not lost and len(gradients) == len(expected), f"checkpointing loses gradients of {some(lost)}")
    for name, gradient in expected.items():
        close = torch.allclose(gradients[name], gradient, rtol=1e-3, atol=1e-6)
        require(close, f"checkpointing changes the gradient of {name}")


def check_compile(method: type[Method]) -> None:
    """`torch.compile` (graph capture, without a compiler) gives the same logits and the same gradients."""
    name = model_for(method)
    attached = attach(method, model=testbed.small(name, **testbed.MODELS[name].shallow))
    expected, images, trained = attached.logits(), testbed.batch()[0], attached.trained()
    torch.compiler.reset()
    compiled: Any = torch.compile(attached.model, backend="eager")
    logits = compiled(images)
    gap = relative_gap(logits.detach(), expected)
    require(gap <= 1e-4, f"the compiled model's logits differ by {gap:.1e}")
    for name, one, other in zip(
        trained, *(_gradients_of_sum(y, trained) for y in (logits, attached.model(images))), strict=True
    ):
        require(torch.allclose(one, other, rtol=1e-3, atol=1e-5), f"the compiled model's gradient of {name} differs")


def _gradients_of_sum(logits: Tensor, trained: Mapping[str, Tensor]) -> list[Tensor]:
    """Gradients of the summed logits with respect to the trained tensors."""
    if not trained:
        return []
    return list(torch.autograd.grad(logits.square().sum(), list(trained.values()), materialize_grads=True))


Check = Callable[[type[Method]], None]

CHECKS: dict[str, Check] = {
    "declared": check_declared,
    "backbones": check_backbones,
    "parameters": check_parameters,
    "identity": check_identity,
    "clean": check_clean,
    "deterministic": check_deterministic,
    "gradients": check_gradients,
    "frozen": check_frozen,
    "learns": check_learns,
    "alone": check_alone,
    "state": check_state,
    "merge": check_merge,
    "isolation": check_isolation,
    "deepcopy": check_deepcopy,
    "autocast": check_autocast,
    "checkpointing": check_checkpointing,
    "compile": check_compile,
    **RUN_CHECKS,
    **SETTING_CHECKS,
}
"""All checks by the name that tests and the command line print."""


def run_check(name: str, method: type[Method], checks: Mapping[str, Check] = CHECKS) -> str | None:
    """None if the method passes the check of that name, otherwise what is wrong, in one line."""
    try:
        checks[name](method)
    except NotConforming as failure:
        return str(failure)
    except Exception as error:  # whatever a method raises is its failure, and must not hide the other checks
        return f"{type(error).__name__}: {error}".splitlines()[0] + _place(error, method)
    return None


def _place(error: Exception, method: type[Method]) -> str:
    """Where in the method's own file the error comes from; empty if it does not."""
    file = inspect.getsourcefile(method)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
