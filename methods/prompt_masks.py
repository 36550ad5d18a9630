"""Masks of prompts, and how the least important of what they stand for is cut."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

PIECES = 16
"""Pieces into which the channels of a prompt are cut."""


class Masks(nn.Module):
    """Factors of the prompts' entries, the same in all blocks: one per prompt times one per piece of each prompt.

    Piece s has the d / 16 channels from s * d / 16 on or, `interleaved`, the channels s, s + 16, s + 32, ...
    """

    def __init__(self, tokens: int, interleaved: bool) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.ones(tokens))
        self.pieces = nn.Parameter(torch.ones(tokens, PIECES))
        self.interleaved = interleaved

    def values(self) -> tuple[Tensor, Tensor]:
        """The factors in use: [tokens], [tokens, pieces]."""
        return self.tokens, self.pieces

    def factors(self, d: int) -> Tensor:
        """Of prompts of d channels: [tokens, d]."""
        tokens, pieces = self.values()
        each = d // PIECES
        spread = pieces.repeat(1, each) if self.interleaved else pieces.repeat_interleave(each, dim=1)
        return tokens[:, None] * spread


class PrunableMasks(Masks):
    """Masks that are constants once they are pruned: 0 for what is cut, 1 for what is kept."""

    kept_tokens: Tensor
    kept_pieces: Tensor
    pruned: Tensor

    def __init__(self, tokens: int, interleaved: bool) -> None:
        super().__init__(tokens, interleaved)
        self.register_buffer("kept_tokens", torch.ones(tokens))
        self.register_buffer("kept_pieces", torch.ones(tokens, PIECES))
        self.register_buffer("pruned", torch.zeros((), dtype=torch.bool))

    def values(self) -> tuple[Tensor, Tensor]:
        tokens = torch.where(self.pruned, self.kept_tokens, self.tokens)
        return tokens, torch.where(self.pruned, self.kept_pieces, self.pieces)

    def prune(self, scores: Sequence[Tensor], cut: tuple[int, int]) -> None:
        """Cut so many tokens, and so many pieces of each token: those of the lowest scores, [tokens] and [tokens,
        pieces]."""
        (of_tokens, of_pieces), (tokens, pieces) = scores, cut
        self.kept_tokens[of_tokens.argsort(stable=True)[:tokens]] = 0
        self.kept_pieces.scatter_(1, of_pieces.argsort(dim=1, stable=True)[:, :pieces], 0)
        self.pruned.fill_(True)


class Pruning:
    """Scores the masks by their gradients up to a step; then cuts, and rewinds the prompts to where they started."""

    def __init__(
        self, masks: PrunableMasks, prompts: Sequence[nn.Parameter], step: int, cut: tuple[int, int], signed: bool
    ) -> None:
        self.masks, self.prompts, self.step, self.cut, self.signed = masks, prompts, step, cut, signed
        self.starts = [prompt.detach().clone() for prompt in prompts]
        self.scores = [torch.zeros_like(mask) for mask in (masks.tokens, masks.pieces)]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Add the step's gradients to the scores; in the step of the pruning, prune."""
        if step > self.step:
            return
        for score, mask in zip(self.scores, (self.masks.tokens, self.masks.pieces), strict=True):
            if mask.grad is not None:
                score += mask.grad if self.signed else mask.grad.abs()
        if step == self.step:
            self.masks.prune(self.scores, self.cut)
            for prompt, start in zip(self.prompts, self.starts, strict=True):
                prompt.copy_(start)

    def state(self) -> list[Tensor]:
        """The scores so far."""
        return self.scores

    def load_state(self, state: Sequence[Tensor]) -> None:
        """Go on from the scores that `state` gave."""
        self.scores = [score.clone() for score in state]
