"""MoSA: an adapter beside the MLP, one projection of which is split over sparse experts that take turns in training."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, linear, mse_loss

from methods.base import Attachment, Batch, Context, Method
from methods.blocks import blocks
from methods.bottleneck import AdapterMethod, Bottleneck, Place, zero_up_projections
from methods.settings import Count, Positive, Probability, Settings, at_least, one_of

EPS = 1e-6
"""Of the adapters' LayerNorms."""


def draw_expert(count: int, device: torch.device) -> Tensor:
    """A number below `count`, int64 [1]."""
    return torch.randint(count, (1,), device=device)


class SparseExperts(nn.Module):
    """A linear layer of which each weight belongs to one of n experts, an equal share to each, at random. In training
    one expert is drawn for a pass: its own weights, `start` in place of the others, and its own bias. In evaluation
    mode it is the mean of all experts, in which each weight's distance from its start counts 1/n.

    weight: [out, in], bias: [n, out], start: [out, in], what all experts began with.
    """

    stateless = True

    owner: Tensor
    start: Tensor

    def __init__(self, layer: nn.Linear, experts: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().repeat(experts, 1))
        size = self.weight.numel()
        ranks = torch.randperm(size, generator=generator)
        self.register_buffer("owner", (((ranks + 1) * experts - 1) // size).view_as(self.weight).to(torch.int16))
        self.register_buffer("start", layer.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out]."""
        experts = len(self.bias)
        if not self.training:
            mean = self.start + (self.weight - self.start) / experts
            return linear(x, mean, self.bias.mean(dim=0))
        expert = draw_expert(experts, x.device)
        weight = torch.where(self.owner == expert, self.weight, self.start)
        return linear(x, weight, self.bias[expert].squeeze(0))


class MoSA(AdapterMethod):
    """x + mlp(norm2 x) + s * (U GELU(D norm x + d) + u), a LayerNorm of the adapter's own, and U or D split over n
    experts: 2 d + 2 d k + k + n d parameters per block of d channels with `share` "down", 2 d + 2 d k + n k + d with
    "up" (350,400 and 323,328 on ViT-B, k = 16, n = 4). Starts as AdaptFormer, U zero.

    Each weight of the split projection belongs to one expert and trains when that expert is drawn, one for each block
    and pass; biases of experts are whole. The batch is run twice in a step: the loss is that of the first pass plus
    1/2 [KL(p2 || p1) + KL(p1 || p2)] of the passes' probabilities, the target of each without gradient.

    In evaluation mode the split projection is the mean of all experts, as in the release: a weight of U counts 1/n of
    what it did in the pass that trained it. The release's optimiser also decays what an expert does not own, which for
    D is not zero; here that stays as it started. Its frozen ViT has dropout of 0.1 in training, here there is none.
    """

    name = "mosa"
    title = "MoSA"
    paper = "Zhang et al., MoSA: Mixture of Sparse Adapters, 2023, arXiv 2312.02923"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "bottleneck": (16, 64), "experts": (2, 4)}
    slots = ("mlp_parallel",)

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        bottleneck: Count = 16
        """Width k of the bottleneck; 64 for the release's fine-grained tasks."""

        experts: Count = 4
        """Number n of experts; 2 or 4 in the release."""

        share: Annotated[str, one_of("down", "up")] = "down"
        """The projection that all experts share; the other is split."""

        scale: Positive = 0.1
        """Factor s on the adapter's output."""

        dropout: Probability = 0.1
        """Dropout inside the bottleneck."""

        deep: Annotated[float, at_least(0)] = 0.0
        """Factor of another penalty: the mean squared differences of what the first half of the blocks give in both
        passes, summed and divided by the number of blocks. 0.01 for some of the release's tasks."""

    config: Config

    def adapter_parameters(self, d: int) -> int:
        c = self.config
        biases = c.bottleneck + c.experts * d if c.share == "down" else c.experts * c.bottleneck + d
        return 2 * d + 2 * d * c.bottleneck + biases

    def adapter(self, place: Place, generator: torch.Generator) -> Bottleneck:
        c = self.config
        down, up = zero_up_projections(place.d, c.bottleneck, generator)
        if c.share == "down":
            pair: tuple[nn.Module, nn.Module] = (down, SparseExperts(up, c.experts, generator))
        else:
            pair = (SparseExperts(down, c.experts, generator), up)
        return Bottleneck(*pair, nn.GELU(), c.scale, c.dropout, nn.LayerNorm(place.d, eps=EPS))

    def attach(self, backbone: Any, context: Context) -> Attachment:
        super().attach(backbone, context)
        names = {module: name for name, module in backbone.named_modules()}
        every = blocks(backbone)
        read = tuple(names[block] for block in every[: len(every) // 2]) if self.config.deep else ()
        # What all experts of an up-projection began with is zero: it need not be stored.
        starts = tuple(m.start for m in names if isinstance(m, SparseExperts)) if self.config.share == "down" else ()
        penalty = partial(self.penalty, read, len(every))
        return Attachment(penalty=penalty, features=read, forward_passes=2, recomputed=starts)

    def penalty(self, read: tuple[str, ...], depth: int, batch: Batch) -> Tensor:
        """How far a pass with other experts lies apart. read: names of the blocks that are compared, of `depth`."""
        again = batch.forward()
        one, other = batch.logits.log_softmax(dim=1), again.logits.log_softmax(dim=1)
        apart = 0.5 * (_divergence(one, other) + _divergence(other, one))
        between = [mse_loss(batch.features[name], again.features[name]) for name in read]
        return apart + self.config.deep / depth * torch.stack(between).sum() if between else apart


def _divergence(log: Tensor, target: Tensor) -> Tensor:
    """KL(target || log), a mean over images, of log-probabilities [B, classes]; the target gets no gradient."""
    return kl_div(log, target.detach(), reduction="batchmean", log_target=True)
