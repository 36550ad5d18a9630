"""SPT: sensitive weights are trained one by one, and by LoRA or adapters in matrices where they are many."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from methods.blocks import new_linear, plug_layer
from methods.bottleneck import Bottleneck
from methods.layers import LowRank, low_rank
from methods.segments import Segment
from methods.sensitive import (
    RELEASED_DROPOUT,
    RELEASED_STD,
    Dropped,
    SensitiveMethod,
    attention_outputs,
)
from methods.sparse import fold_sparse


class SPTLoRA(SensitiveMethod):
    """Trains exactly round(share * N) parameters, N being the backbone's without head: the weights most sensitive on
    the training data, s = sum of squared gradients over batches, one by one where they are few in a
    matrix, and a LoRA of that matrix where they are many. What the LoRAs leave of the budget goes to the most sensitive
    single weights elsewhere.

    By default it starts at the pretrained function: A as torch draws a linear layer, B zero. No run of the authors'
    code starts so: its constructor draws both matrices again, of std 0.02, as the variant `released` does.

    The variant `released` does what the authors' scripts do besides: a matrix gets its LoRA at a tenth of the
    LoRA's parameters; the LoRAs have dropout and drop-path of 0.1; the class token is trained; vectors of which 20 %
    are sensitive are trained as a whole, and the weights of norms in no other way; and sensitivities come from the
    first 16 batches of 32. It keeps to the budget exactly, class token included, where the release takes the nearest of
    79 cut-offs; and it sums gradients in eval mode, where the release has drop-path on.
    """

    name = "spt_lora"
    title = "SPT-LoRA"
    paper = "He et al., Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, ICCV 2023, arXiv 2303.08566"
    mergeable = True
    whole_name = "lora_matrices"

    def cost(self, backbone: nn.Module) -> Callable[[nn.Linear, int], int]:
        return lambda layer, outputs: self.config.rank * (layer.in_features + outputs)

    def merge_for(self, layers: Sequence[nn.Module]) -> Callable[[], None]:
        return partial(fold_sparse, layers)

    def plug_whole(self, backbone: nn.Module, matrices: Sequence[Segment], generator: torch.Generator) -> None:
        """A LoRA beside each of these matrices."""
        undropped = attention_outputs(backbone)
        for layer in dict.fromkeys(s.layer for s in matrices):
            branches: Sequence[nn.Module] = [self.lora(s, generator) for s in matrices if s.layer is layer]
            if self.released:
                dropout = 0.0 if layer in undropped else RELEASED_DROPOUT
                branches = [Dropped(branches, dropout, RELEASED_DROPOUT)]
            for branch in branches:
                plug_layer(layer, "parallel", branch)

    def lora(self, segment: Segment, generator: torch.Generator) -> LowRank:
        """A new LoRA of these rows of a layer."""
        layer, rank, (start, stop) = segment.layer, self.config.rank, segment.rows
        if not self.released:
            return low_rank(layer, rank, generator, rows=segment.rows)
        down = new_linear(layer.in_features, rank, generator, std=RELEASED_STD, bias=False)
        up = new_linear(rank, stop - start, generator, std=RELEASED_STD, bias=False)
        return LowRank(down, up, 1.0, start, layer.out_features, dropout=0.0)


class OnRows(nn.Module):
    """y + branch(y[start:stop]), added to these channels; y: [..., total]."""

    stateless = True

    def __init__(self, branch: nn.Module, start: int, stop: int, total: int) -> None:
        super().__init__()
        self.branch, self.start, self.stop = branch, start, stop
        self.padding = (start, total - stop)

    def forward(self, y: Tensor) -> Tensor:
        return y + pad(self.branch(y[..., self.start : self.stop]), self.padding)


class SPTAdapter(SensitiveMethod):
    """As `spt_lora`, with adapters in place of the LoRAs: W x + b + A(W x + b) for a matrix with many sensitive
    weights, A(z) = U GELU(D z + a) + u, 2 r m + r + m parameters for m outputs; of attention's output projection
    W z + b + A(z). All of ViT-B's matrices would have 1,410,624; the budget is kept as there.

    By default it starts at the pretrained function: D uniform between -m^-1/2 and m^-1/2, U zero. No run of the
    authors' code starts so: its constructor draws both again, of std 0.02, as the variant `released` does, with what is
    said of it in `spt_lora`. The matrices are chosen by what adapters cost, as in the authors' selection for
    adapters; their script for supervised backbones loads the selection made for LoRAs, which is not offered here.
    """

    name = "spt_adapter"
    title = "SPT-Adapter"
    paper = "He et al., Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning, ICCV 2023, arXiv 2303.08566"
    whole_name = "adapter_matrices"

    def cost(self, backbone: nn.Module) -> Callable[[nn.Linear, int], int]:
        rank, beside = self.config.rank, attention_outputs(backbone)

        def of_adapter(layer: nn.Linear, outputs: int) -> int:
            inputs = layer.in_features if layer in beside else outputs
            return rank * (inputs + outputs) + rank + outputs

        return of_adapter

    def plug_whole(self, backbone: nn.Module, matrices: Sequence[Segment], generator: torch.Generator) -> None:
        """An adapter after each of these matrices, of attention's output projections beside it."""
        beside = attention_outputs(backbone)
        for segment in matrices:
            layer, (start, stop) = segment.layer, segment.rows
            if layer in beside:
                plug_layer(layer, "parallel", self.adapter(layer.in_features, stop, 0.0, generator))
            else:
                adapter = self.adapter(stop - start, stop - start, RELEASED_DROPOUT, generator)
                plug_layer(layer, "output", OnRows(adapter, start, stop, layer.out_features))

    def adapter(self, inputs: int, outputs: int, dropout: float, generator: torch.Generator) -> nn.Module:
        """A new adapter; `dropout` of its input is the release's."""
        rank, std = self.config.rank, RELEASED_STD if self.released else 0.0
        down, up = new_linear(inputs, rank, generator, std=std), new_linear(rank, outputs, generator, std=std)
        if self.released:
            return Dropped([Bottleneck(down, up, nn.GELU())], dropout, RELEASED_DROPOUT)
        nn.init.uniform_(down.weight, -(inputs**-0.5), inputs**-0.5, generator=generator)
        return Bottleneck(down, up, nn.GELU())
