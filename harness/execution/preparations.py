"""What is checked before anything starts, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.data.lists import Roots, folders_taken
from harness.data.located import refuse_unusable
from harness.data.splits import done_on_other_data, not_official
from harness.models.backbones import about_file
from harness.plans.plan import Selection
from harness.plans.tuning import WorkItem
from harness.records import stale
from harness.schema.record import RunRecord
from harness.terminal import counting

Tell = Callable[[str], None]
"""Takes a line for the user; one that begins with `warning: ` or `note: ` goes to the error stream."""


def prepare(
    selection: Selection,
    roots: Roots,
    settled: Sequence[RunRecord],
    to_do: Sequence[WorkItem],
    *,
    curve: bool = False,
    tell: Tell,
) -> None:
    """Tell what the user should know before runs start. `DataError` if the data of `to_do` cannot be used.

    `settled`: records of the selection's runs that are complete.
    """
    suite, tasks, preprocessing = selection.suite, selection.tasks, selection.preprocessing
    tell_weights(selection, tell)
    if suite.path is not None:
        tell(suite.about)
    for warning in not_official(suite, tasks, roots, selection.shots, preprocessing):
        tell(f"warning: {warning}")
    with counting("comparing images") as compared:
        warnings = list(done_on_other_data(suite, settled, roots, preprocessing, compared))
    for warning in warnings:
        tell(f"warning: {warning}; not done again, for that use another --out")
    if text := stale.warning(record.spec.method for record in settled if stale.is_stale(record)):
        tell(f"warning: {text}.")
    if to_do:
        with counting("looking for lists and images") as looked_for:
            remarks = refuse_unusable(suite, to_do, roots, curve, looked_for)
        for remark in remarks:
            tell(f"warning: {remark}")
        for line in folders_taken(suite, tasks, roots):
            tell(line)


def tell_weights(selection: Selection, tell: Tell) -> None:
    """Say what the user's own checkpoint is, where there is one, and how the inputs are made for it."""
    if about := about_file(selection.backbone):
        tell(f"{selection.backbone.weights} is {about}; inputs: {selection.preprocessing.id}")
