"""Features of a backbone, recorded while it runs, for what reads them further on.

For a method that reads earlier blocks, at its end or in a penalty: plug a `Record` into each block that is read, and
take the tape where the features are used. `Record` keeps what passed until it is taken, so it does not declare
`stateless = True`, and the trainer leaves nothing out of such a training (`methods.blocks.keeps_nothing`): what is read
is what the same pass recorded. A module of your own that keeps anything from call to call must not declare it either.
"""

from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import MethodError


class Tape:
    """Recorded tensors by number."""

    def __init__(self) -> None:
        self.features: dict[int, Tensor] = {}

    def take(self) -> list[Tensor]:
        """All recorded tensors in order of number; the tape is empty afterwards."""
        taken = [self.features[number] for number in sorted(self.features)]
        self.features = {}
        return taken


class Record(nn.Module):
    """Put what passes on the tape, without gradient, so that nothing trains through the backbone; pass it on
    unchanged."""

    def __init__(self, tape: Tape, number: int) -> None:
        super().__init__()
        self.tape, self.number = tape, number

    def forward(self, x: Tensor) -> Tensor:
        self.tape.features[self.number] = x.detach()
        return x


def last_norm(vit: nn.Module) -> nn.Module:
    """The norm between a ViT's blocks and its head: on tokens, or for some average-pooling models on pooled features.

    A side network plugged in after it stays outside of gradient checkpointing. Raises `MethodError` without a norm.
    """
    for norm in architecture_of(vit).final_norms(vit):
        if getattr(norm, "weight", None) is not None:
            return norm
    raise MethodError("a side network needs a backbone with a norm in front of its head")
