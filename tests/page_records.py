"""Records whose page the tests look at, with names and reasons that try to break out of it."""

from rich.console import Console

from analysis.report import write_report
from harness.records.store import Rejected, Store
from harness.schema.record import Epoch, RunRecord
from suites import SUITES
from tests.examples import make_record, make_spec
from tests.table_records import from_records

EVIL = "<script>document.title = 'owned'</script></script><img src=x onerror=\"document.title = 'owned'\"> & more"
ABOUT = {
    "lora": {"title": "LORA", "family": "reparameterisation", "paper": "Hu et al., ICLR 2022, arXiv 2106.09685"},
    "sct": {"title": "SCT", "family": "selective", "paper": EVIL},
    "never_run": {"title": "Never run", "family": "x", "paper": "x"},
}
CURVE = [Epoch(epoch=e, train_loss=1 / e, train_accuracy=50.0, lr=1e-3) for e in (1, 2)]


def records(methods=("sct", "lora", "full"), seeds=2, suite="demo", **changes):
    """Accuracy differs by method, task and seed, so that every order is known."""
    return [
        make_record(
            spec=make_spec(suite=suite, task=task.name, method=method, seed=seed, **changes),
            accuracy=30.0 + 10 * m + t + seed,
            curve=CURVE,
        )
        for m, method in enumerate(methods)
        for t, task in enumerate(SUITES[suite].tasks)
        for seed in range(seeds)
    ]


def everything():
    """Two suites, two protocols, failures with an evil reason and an evil name."""
    failed = [
        RunRecord(spec=make_spec(method="evil", seed=s), method_title="<b>Evil</b>", status="failed", reason=EVIL)
        for s in range(2)
    ]
    return records() + records(protocol="validation", methods=("sct", "lora")) + failed


def write_everything(root):
    """The report of `everything` and a torn file, and the files it wrote, the page first."""
    given = everything()
    for record in given:
        Store(root).write(record)
    rejected = [Rejected(root / "runs" / "demo" / "x" / "torn" / "record.json", "torn: <script>")]
    return write_report(from_records(given, rejected), root / "report", Console(quiet=True), about=ABOUT)
