"""A training step as a CUDA graph: recorded once for each size of batch, then replayed.

A step of a ViT-B is over a thousand kernels. Python takes longer to launch them than the device takes to run them; a
replay is one launch. It runs the same kernels on the same tensors and draws the same random numbers, so the results are
bit for bit those of the step as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Attachment
from methods.blocks import keeps_nothing

WARM_UP = 3
"""Steps of a size that are run as they are before that size is recorded: the first ones load and compile kernels, and
make the optimiser's state."""

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""From inputs and targets to results, all on the device."""


def can_replay(model: Any, attachment: Attachment, device: torch.device) -> bool:
    """Whether every step does the same operations on the same tensors, which is all that a graph can do."""
    does_more = attachment.after_step is not None or attachment.state is not None
    return device.type == "cuda" and not does_more and keeps_nothing(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """A recorded step, and the tensors that it reads from and writes to."""

    graph: Any
    inputs: Tensor
    targets: Tensor
    results: tuple[Tensor, ...]

    def replay(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """The step on other inputs and targets. The results are overwritten by the next replay."""
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.results


class StepGraphs:
    """Does a training step, from a recording as soon as there is one of the batch's size.

    A step that cannot be recorded, because it waits for the device or the memory is short, is run as it is from then
    on; `refusal` is the reason.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.refusal = ""
        self._seen: Counter[Any] = Counter()
        self._recordings: dict[Any, _Recording] = {}
        self._pool: Any = None

    @property
    def mode(self) -> str:
        """`CUDA graph` if steps were replayed; else `eager`, with the reason if recording was tried."""
        if self._recordings:
            return "CUDA graph"
        return f"eager ({self.refusal})" if self.refusal else "eager"

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        size = (inputs.shape, inputs.dtype, targets.shape, targets.dtype)
        self._seen[size] += 1
        if self._seen[size] == WARM_UP + 1 and not self.refusal:
            self._record(size, inputs, targets)
        recording = self._recordings.get(size)
        if recording is None:
            return self.step(inputs, targets)
        return recording.replay(inputs, targets)

    def _record(self, size: Any, inputs: Tensor, targets: Tensor) -> None:
        """Record the step without running it."""
        graph, places = torch.cuda.CUDAGraph(), (inputs.clone(), targets.clone())
        generator = torch.cuda.default_generators[inputs.device.index]
        before = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                results = self.step(*places)
        except RuntimeError as error:
            generator.graphsafe_set_state(before)  # it would wait for the end of the recording for ever
            self.refusal = str(_first(error)).partition("\n")[0]
            return
        self._pool = graph.pool()  # steps run one after the other, so they can use the same memory
        self._recordings[size] = _Recording(graph=graph, inputs=places[0], targets=places[1], results=results)


def _first(error: BaseException) -> BaseException:
    """The error that the others came of."""
    while error.__context__ is not None:
        error = error.__context__
    return error
