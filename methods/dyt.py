"""DyT: AdaptFormer whose MLPs serve only the tokens that a router sends to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from methods.architectures import architecture_of
from methods.base import Attachment, Batch, Context
from methods.blocks import blocks, new_linear, plug, width
from methods.bottleneck import AdapterMethod, Bottleneck, Place, bottleneck_parameters, zero_up_projections
from methods.settings import Count, Limit, Positive, Probability, Settings

SHARE = Limit(requirement="between 0 and 1", holds=lambda share: 0 < share <= 1)


def exponential_like(x: Tensor) -> Tensor:
    """Standard exponential numbers of the shape of x."""
    return torch.empty(x.shape, device=x.device).exponential_()


class Gate(nn.Module):
    """1 for the tokens that the MLP serves, 0 for the others; the `prefix` first ones are always served.

    The gradient is that of a sigmoid: of the score <a, x> + a0, in training with Gumbel noise and divided by a
    temperature.
    """

    stateless = True

    def __init__(self, router: nn.Linear, prefix: int, temperature: float) -> None:
        super().__init__()
        self.router, self.prefix, self.temperature = router, prefix, temperature

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, tokens, d] or a map [batch, rows, columns, d]; the same without the last dimension."""
        scores = self.router(x[:, self.prefix :]).squeeze(-1)
        if self.training:
            first, second = exponential_like(scores), exponential_like(scores)
            scores = (scores - first.log() + second.log()) / self.temperature
        soft = scores.sigmoid()
        routed = ((soft > 0.5).to(soft.dtype) + (soft - soft.detach())).to(x.dtype)
        return torch.cat([routed.new_ones(len(x), self.prefix, *routed.shape[2:]), routed], dim=1)


@dataclass(slots=True)
class Note:
    """What the modules of one block tell each other in a pass. Whoever keeps one is not stateless."""

    gates: Tensor = field(default_factory=lambda: torch.empty(0))


class Route(nn.Module):
    """Note the gates of the tokens that pass, all one for a `complete` pass; the tokens are passed on."""

    def __init__(self, gate: Gate, note: Note) -> None:
        super().__init__()
        self.gate, self.note = gate, note
        self.complete = False

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, tokens, d] or [batch, rows, columns, d]."""
        self.note.gates = x.new_ones(x.shape[:-1]) if self.complete else self.gate(x)
        return x


class Gather(nn.Module):
    """In evaluation mode the tokens that the MLP serves, alone: [served, d]."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, tokens, d] or [batch, rows, columns, d]."""
        return x if self.training else x[self.note.gates > 0.5]


class Scatter(nn.Module):
    """What the MLP gives, times the gates; in evaluation mode put back in its places, with zeros for the others."""

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def forward(self, h: Tensor) -> Tensor:
        """h: of what `Gather` gave; to [batch, tokens, d] or [batch, rows, columns, d]."""
        gates, self.note.gates = self.note.gates, torch.empty(0)
        if self.training:
            return h * gates.unsqueeze(-1)
        served = gates > 0.5
        gated = h * gates[served].unsqueeze(-1)
        out = gated.new_zeros(*gates.shape, h.shape[-1])
        out[served] = gated
        return out


@contextmanager
def complete(routes: Sequence[Route]) -> Iterator[None]:
    """Within, every token passes every MLP."""
    for route in routes:
        route.complete = True
    try:
        yield
    finally:
        for route in routes:
            route.complete = False


class DyT(AdapterMethod):
    """x + g * mlp(norm2 x) + s * W_up dropout(ReLU(W_down x)), g = [<a, x> + a0 > 0] for each token x behind attention:
    2*d*h + h + d + d + 1 parameters per block (d channels, bottleneck h; 313,548 on ViT-B).

    Prefix tokens (class token, registers) are always served; on maps all tokens are routed. In evaluation mode the MLP
    is computed for the tokens that it serves alone, so that the operations of a run's record, counted on real images,
    are those that are needed: what they are depends on the images.

    In training the MLP is computed for all tokens and multiplied by the gate, [sigmoid((<a, x> + a0 + n) / 5) > 1/2]
    with the difference n of two Gumbel numbers and the sigmoid's gradient. A second, complete pass serves all tokens:
    total = CE(y) + 2 (mean of g - rate)^2 + CE(y_complete) + KL(y_complete || y), y_complete without gradient in the
    last term, CE being the recipe's loss.

    a is of std 0.02, so about half of the tokens are left out at the start, which is not the pretrained function. The
    rest starts as in AdaptFormer. Gradient checkpointing would run blocks again after the complete pass, with gates:
    it must not be on in training.
    """

    name = "dyt"
    title = "DyT"
    paper = "Zhao et al., Dynamic Tuning, NeurIPS 2024, arXiv 2403.11808"
    recipe = {"lr": 5e-3, "drop_path": 0.0}
    search_space = {**AdapterMethod.search_space, "scale": (0.1, 0.5, 1.0)}
    identity_at_start = False
    needs = frozenset({"attention"})
    slots = ("mlp_parallel",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 16
        """Width h of the bottleneck."""

        scale: Positive = 1.0
        """Factor s on the adapter's output; the release searches it."""

        dropout: Probability = 0.1
        """Dropout inside the bottleneck."""

        rate: Annotated[float, SHARE] = 0.5
        """Share of the tokens that the MLPs shall serve."""

        rate_weight: Positive = 2.0
        """Factor of the penalty on the distance from this share."""

        temperature: Positive = 5.0
        """By which scores are divided in training."""

    config: Config

    def adapter_parameters(self, d: int) -> int:
        return bottleneck_parameters(d, self.config.bottleneck) + d + 1

    def adapter(self, place: Place, generator: torch.Generator) -> Bottleneck:
        c = self.config
        return Bottleneck(*zero_up_projections(place.d, c.bottleneck, generator), nn.ReLU(), c.scale, c.dropout)

    def attach(self, backbone: Any, context: Context) -> Attachment:
        super().attach(backbone, context)
        prefix, routes = architecture_of(backbone).prefix_tokens(backbone), []
        for block in blocks(backbone):
            note, router = Note(), new_linear(width(block), 1, context.generator)
            routes.append(Route(Gate(router, prefix, self.config.temperature), note))
            plug(block, "after_attention", routes[-1])
            plug(block, "mlp_input", Gather(note))
            plug(block, "mlp_output", Scatter(note))
        names = {module: name for name, module in backbone.named_modules()}
        gates = tuple(names[route.gate] for route in routes)
        penalty = partial(self.penalty, routes, gates, prefix)
        return Attachment(penalty=penalty, features=gates, forward_passes=2)

    def penalty(self, routes: Sequence[Route], names: Sequence[str], prefix: int, batch: Batch) -> Tensor:
        """What is added to the recipe's loss of the gated pass. names: of the gates among the features."""
        served = torch.stack([batch.features[name][:, prefix:].mean() for name in names]).mean()
        with complete(routes):
            whole = batch.forward().logits
        target = whole.detach().log_softmax(dim=1)
        apart = kl_div(batch.logits.log_softmax(dim=1), target, reduction="batchmean", log_target=True)
        return self.config.rate_weight * (served - self.config.rate).square() + batch.loss(whole) + apart
