"""Complete runs whose method's source has changed since: they are named, and repeated only on request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from harness.errors import HarnessError
from harness.schema.record import ReadRecord, RunRecord
from harness.schema.spec import RunSpec
from methods.base import MethodError

STALE = "stale"
"""What `--redo` takes."""


def current_source(method: str) -> str:
    """Digest of a method's source as it is here; empty if the method is unknown here or its source cannot be read."""
    from methods import registry  # loads torch, which `status` does without where no record has a source

    try:
        return registry.source_digest(method)
    except MethodError:
        return ""


def differs(method: str, source: str) -> bool:
    """Whether a record's source is known and differs from the method's source here."""
    return bool(source) and current_source(method) not in ("", source)


def is_stale(record: RunRecord) -> bool:
    """Whether the record stands, and its method has been edited since."""
    stands = record.status == "complete" or (record.failure is not None and record.failure.kind == "diverged")
    return stands and differs(record.spec.method, record.method_source)


def without_stale(read: ReadRecord) -> ReadRecord:
    """The same as `read`, but None for stale records: a plan made with it repeats these runs."""

    def read_fresh(spec: RunSpec) -> RunRecord | None:
        record = read(spec)
        return None if record is not None and is_stale(record) else record

    return read_fresh


def check_redo(redo: str | None) -> bool:
    """Whether stale runs are to be repeated. `HarnessError` for anything but `stale`."""
    if redo not in (None, STALE):
        raise HarnessError(
            f"--redo {redo}: only `--redo {STALE}` is known; it repeats complete runs whose method has changed since"
        )
    return redo == STALE


def warning(methods: Iterable[str]) -> str:
    """A line on stale runs, given the method of each run; empty if there are none."""
    counts = Counter(methods)
    if not counts:
        return ""
    total, each = counts.total(), ", ".join(f"{method} ({count})" for method, count in sorted(counts.items()))
    what = "1 complete run was" if total == 1 else f"{total} complete runs were"
    return (
        f"{what} done before the method's source was changed: {each}. The results are kept; `run` and `submit` with "
        f"`--redo {STALE}` repeat these runs and keep the old records in superseded/"
    )
