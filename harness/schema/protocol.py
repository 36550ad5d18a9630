"""Protocols: what a run may look at, and which number it reports. Each is data, with the name that tables print."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import HarnessError
from methods.base import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A selection rule."""

    name: str
    final: bool = True
    """Whether this is a final training, on the suite's `final_split` (train + val for VTAB); else on train alone."""

    report_split: str = "test"
    """Split whose metrics at the last epoch are the result."""

    published: bool = False
    """Whether config and recipe of every run come from the table of published ones, and from nowhere else."""

    tunes: bool = False
    """Whether each method's settings are chosen by trials first, see `harness.plans.tuning`."""

    every_epoch: bool = False
    """Whether `report_split` is looked at after every epoch, and the best epoch by the task's primary metric is the
    result."""

    caption: str
    """How tables describe it."""

    def looks(self, epochs: int) -> int:
        """How often a run may open the test split."""
        if self.report_split != "test":
            return 0
        return epochs if self.every_epoch else 1


_ALL = (
    Protocol(
        name="fixed",
        caption="one recipe for all tasks, trained on train+val, test opened once after the last epoch",
    ),
    Protocol(
        name="tuned",
        tunes=True,
        caption="per task, each method's settings chosen among the same number of trials (trained on train, scored on "
        "val after the last epoch), then trained on train+val with each seed, test opened once after the last epoch",
    ),
    Protocol(
        name="validation",
        final=False,
        report_split="val",
        caption="trained on train, scored on val after the last epoch; test never opened",
    ),
    Protocol(
        name="published",
        published=True,
        caption="each task with the recipe and settings of the method's release, trained on train+val, test opened "
        "once after the last epoch",
    ),
    Protocol(
        name="oracle",
        every_epoch=True,
        caption="one recipe for all tasks, trained on train+val, test looked at after every epoch and the best epoch "
        "reported, so the test split chose the result: not comparable to the other protocols",
    ),
)

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def get(name: str) -> Protocol:
    """The protocol of that name; `HarnessError` if there is none."""
    if name not in PROTOCOLS:
        raise HarnessError(f"unknown protocol {name!r}. {did_you_mean(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]
