"""What a run keeps beside its record. It decides nothing of the result, so it is no part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import HarnessError, did_you_mean

WEIGHTS = ("auto", "all", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What a run keeps of its model. `HarnessError` for a value that is not known."""

    weights: str = "auto"
    """Tuned weights: `auto` those of final trainings up to 32 MiB, `all` those of every run, or `none`."""

    logits: bool = False
    """Whether the predictions, which every run keeps, hold all logits."""

    def __str__(self) -> str:
        kept = ["predictions with logits" if self.logits else "predictions"]
        words = {"auto": "tuned weights of final trainings up to 32 MiB", "all": "tuned weights"}
        return " and ".join([*kept, words[self.weights]] if self.weights in words else kept)

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise HarnessError(f"--keep-weights {self.weights!r}: {did_you_mean(str(self.weights), list(WEIGHTS))}")
