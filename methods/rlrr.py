"""RLRR: every weight matrix is rescaled by rows and columns, and every norm's output scaled and shifted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.architectures.base import Rows
from methods.base import Attachment, Context, Method
from methods.blocks import blocks, plug, unplug
from methods.layers import MAP_NORMS, NORMS, body_layers, matrices, uniform
from methods.settings import Probability, Settings
from methods.ssf import fold_scale_shift, has_bias, plug_scale_shift, scale_shift_parameters
from methods.updates import Reweighted, fold_reweighted, reweight

STD = 0.02
"""Standard deviation of the factors and shifts behind norms at the start."""


class Rescaling(nn.Module):
    """W * (1 + l r^T) entrywise and b + c; l, c: [out], r: [in], one r for each of the equal `parts` of the outputs.

    Without b there is no c. l, held as [out, 1], and r start Kaiming-uniform by their last axis, c at zero. So l and r
    are subject to weight decay, as in the released code, and c, a vector, is not.
    """

    stateless = True

    shift: Tensor | None

    def __init__(self, layer: nn.Linear, parts: int, generator: torch.Generator) -> None:
        super().__init__()
        self.columns = uniform(generator, (6 / layer.in_features) ** 0.5, parts, layer.in_features)
        self.rows = uniform(generator, 6**0.5, layer.out_features, 1)
        shift = nn.Parameter(torch.zeros(layer.out_features)) if has_bias(layer) else None
        self.register_parameter("shift", shift)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """weight: [out, in]; bias: [out]."""
        product = self.rows.view(len(self.columns), -1, 1) * self.columns[:, None]
        shifted = bias if bias is None or self.shift is None else bias + self.shift
        return weight * (1 + product.flatten(0, 1)), shifted


class DroppedReweighted(Reweighted):
    """The same with dropout in front of and behind the layer."""

    stateless = True

    dropout: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        out: Tensor = self.dropout(super().forward(self.dropout(x)))
        return out


class RLRR(Method):
    """W * (1 + l r^T) and b + c in every linear layer of the blocks, q, k and v apart, and g * y + h behind the patch
    embedding, the two norms of each block and the final norm: 31 * L * d + 4 * d parameters for L blocks of width d,
    288,768 on ViT-B/16.

    It does not start at the pretrained function: entries of W change by up to 22 % on ViT-B. As in the released code
    the entries of each branch, not the branch as a whole, are dropped at random, and the MLP has a dropout of its own.
    On Swin the layers that merge patches are rescaled too, and nothing stands behind the patch embedding; the release
    takes its fused queries, keys and values as one matrix there, with one r. A layer without a bias gets no c, which
    could not be folded in.
    """

    name = "rlrr"
    title = "RLRR"
    paper = "Dong et al., Low-Rank Rescaled Vision Transformer Fine-Tuning, CVPR 2024, arXiv 2403.19067"
    family = "reparameterisation"
    recipe = {"lr": 5e-3, "drop_path": 0.0}
    mergeable = True
    identity_at_start = False
    search_space = {
        "lr": (1e-3, 2e-3, 3e-3, 5e-3, 1e-2),
        "weight_decay": (5e-5, 1e-4, 5e-2),
        "branch_dropout": (0.0, 0.1, 0.2, 0.3, 0.5),
    }

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        branch_dropout: Probability = 0.1
        """Probability of dropping an entry of the last block's branches; it rises evenly from 0 in the first block. The
        release calls it drop path and chooses it per task from 0 to 0.5."""

        dropout: Probability = 0.1
        """Dropout in front of and behind the last layer of every MLP, 0.1 in the released code."""

    config: Config

    def linears(self, backbone: Any) -> list[tuple[nn.Linear, list[Rows]]]:
        """The layers that are rescaled, with the matrices that each holds: those of the blocks and, of a map, those
        between the blocks."""
        inside = [item for block in blocks(backbone) for item in matrices(block).items()]
        if architecture_of(backbone).sequence:
            return inside
        of_blocks = {module for block in blocks(backbone) for module in block.modules()}
        between = [layer for layer in body_layers(backbone, nn.Linear) if layer not in of_blocks]
        return inside + [(layer, [Rows(layer=layer, start=0, stop=layer.out_features)]) for layer in between]

    def shifted(self, backbone: Any) -> list[Any]:
        """The layers whose outputs are scaled and shifted."""
        architecture = architecture_of(backbone)
        norms = {norm for block in blocks(backbone) for norm in architecture.norms(block)}
        norms.update(architecture.final_norms(backbone))
        found = [norm for norm in body_layers(backbone, (*NORMS, *MAP_NORMS)) if norm in norms]
        owner = architecture.first_layer.rpartition(".")[0]
        return [backbone.get_submodule(owner), *found] if architecture.sequence else found

    def expected_parameters(self, backbone: nn.Module) -> int:
        rescaled = sum(
            len(parts) * layer.in_features + layer.out_features * (2 if has_bias(layer) else 1)
            for layer, parts in self.linears(backbone)
        )
        return rescaled + sum(map(scale_shift_parameters, self.shifted(backbone)))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        rescaled, shifted = self.linears(backbone), self.shifted(backbone)
        last = {layer for block in blocks(backbone) for layer in architecture_of(block).linears(block)["fc2"]}
        for layer, parts in rescaled:
            rescaling = Rescaling(layer, len(parts), context.generator)
            reweight(layer, rescaling, DroppedReweighted if layer in last else Reweighted)
        for layer in last:
            layer.dropout = nn.Dropout(self.config.dropout).train(layer.training)
        for layer in shifted:
            plug_scale_shift(layer, STD, context.generator)
        dropped = self.plug_dropout(blocks(backbone))

        def merge() -> None:
            for layer in last:
                del layer.dropout
            fold_reweighted(layer for layer, _ in rescaled)
            fold_scale_shift(shifted)
            for block, slot, dropout in dropped:
                unplug(block, slot, dropout)

        return Attachment(merge=merge)

    def plug_dropout(self, all_blocks: Sequence[Any]) -> list[tuple[Any, str, nn.Module]]:
        """Dropout of every branch, with its block and its slot."""
        rates = torch.linspace(0, self.config.branch_dropout, len(all_blocks)).tolist()
        dropped: list[tuple[Any, str, nn.Module]] = []
        for block, rate in zip(all_blocks, rates, strict=True):
            slots = ("attention_output", "mlp_output") if architecture_of(block).attention else ("mlp_output",)
            dropped += [(block, slot, nn.Dropout(rate)) for slot in slots]
        for block, slot, dropout in dropped:
            plug(block, slot, dropout)
        return dropped
