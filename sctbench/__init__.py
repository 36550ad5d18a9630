"""SCT Bench from Python: what the command `sctbench` does, under the same names.

    import sctbench as sb

    plan = sb.plan(suite="demo", methods=["linear", "lora:rank=4"], tasks=["digits"])
    sb.run(plan, out="results")
    sb.table(sb.frame("results"))

Whatever cannot be worked with raises `Error` with the sentence of the command line, which names arguments, not flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sctbench import _guards

_guards.refuse_hidden_packages()

if TYPE_CHECKING:
    import pandas as pd

    from analysis.shown import Tables
    from harness.errors import HarnessError as Error
    from harness.execution.runs import Plan
    from harness.schema.record import RunRecord
    from slurm.submissions import Submission

    __version__: str

__all__ = [
    "Error",
    "__version__",
    "check",
    "frame",
    "load",
    "plan",
    "predictions",
    "report",
    "run",
    "submit",
    "table",
]


@_guards.one_class_of_errors()
def plan(
    experiment: str | Path | None = None,
    *,
    suite: str | None = None,
    methods: Sequence[str | Mapping[str, Any]] | None = None,
    tasks: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    protocol: str | None = None,
    trials: int | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    image_size: int | None = None,
    recipe: Mapping[str, Any] | None = None,
    shots: Sequence[int] | None = None,
    statistics: str | None = None,
    fit: str | None = None,
    interpolation: str | None = None,
) -> Plan:
    """What is to be run: the keys of an experiment file, see `harness.plans.experiment.Experiment`.

    `experiment`: such a file, which the other arguments override. `suite`: a name, a YAML file, or the path of your own
    data: a folder of class folders, a table, an image folder or a copy that `datasets` saved. The plan shows its tasks,
    runs and GPU hours; `plan.overview("results")` also counts what that folder holds already. `Error` for what does not
    fit, before any image is looked at.
    """
    asked = {**locals()}
    from harness.execution import runs

    return runs.make_plan(**asked)


@_guards.one_class_of_errors()
def run(
    plan: Plan,
    out: str | Path = "results",
    *,
    root: str | Path | None = None,
    lists: str | Path | None = None,
    device: str = "auto",
    jobs: int | Literal["all"] | None = None,
    curve: bool = False,
    keep_weights: str = "auto",
    keep_logits: bool = False,
    track: str | Sequence[str] | None = None,
    redo: str | None = None,
    quiet: bool = False,
) -> list[RunRecord]:
    """Do what is missing of a plan, and return the records of all its runs, in the plan's order, failed ones too.

    The runs are done in this process, one after the other. With `jobs` they are done in so many worker processes; with
    "all" in one per GPU or CPU core. The numbers are the same; neither a main guard nor a script is needed.

    `out`: folder of the results. `root`, `lists`: folders of the images and of the lists, where you bring them.
    `device`: auto, cpu, cuda or cuda:N. `curve`: score val after every epoch where it is not trained on.
    `keep_weights`: "auto" keeps those of final trainings up to 32 MiB, "all" those of every run, "none" none.
    `keep_logits`: keep the logits of every scored image with the predictions. `track`: draw live curves with
    "tensorboard", "wandb" or "mlflow", or several of them. `redo`: "stale" runs complete ones again whose method's
    source has changed since. `quiet`: print nothing.

    `Error`, before anything starts, if something does not fit or the data are not there. An interrupt lets the run
    under way save its state and raises `KeyboardInterrupt`; the same call goes on from there.
    """
    asked = {**locals()}
    from harness.execution import runs

    return runs.run_here(**asked)


@_guards.one_class_of_errors()
def submit(
    plan: Plan,
    out: str | Path = "results",
    *,
    profile: str | Path | None = None,
    root: str | Path | None = None,
    lists: str | Path | None = None,
    keep_weights: str = "auto",
    keep_logits: bool = False,
    track: str | Sequence[str] | None = None,
    redo: str | None = None,
    dry_run: bool = False,
    **settings: Any,
) -> Submission | None:
    """Submit what is missing of a plan to a scheduler, and return: the submission, or None if nothing was missing.

    `profile`: a profile file, see `slurm/profiles/`; `settings`: those of a profile (scheduler, time, gpus ...), which
    override it. `dry_run`: show jobs, scripts and hours, and submit nothing. The others are those of `run`. `Error` for
    what does not fit, or if the scheduler refuses.
    """
    from harness.execution import runs
    from harness.records.stale import check_redo
    from harness.schema.keeping import Keeping
    from harness.training.trackers import check_track
    from slurm import submit as submission
    from slurm.profile_file import make_profile, read_file

    order = submission.Order(
        selection=runs.as_plan(plan).selection,
        profile=make_profile(settings, read_file(runs.as_path("profile", profile)) if profile is not None else None),
        out=runs.as_path("out", out),
        roots=runs.as_roots(root, lists),
        keeping=Keeping(weights=keep_weights, logits=keep_logits),
        track=check_track(track),
        redo_stale=check_redo(redo),
    )
    if dry_run:
        submission.rehearse(order)
        return None
    return submission.submit(order)


@_guards.one_class_of_errors()
def load(
    record: RunRecord | str | Path,
    out: str | Path = "results",
    *,
    weights: str | Path | None = None,
    method: str | None = None,
    device: str = "cpu",
) -> Any:
    """The timm model of a run with its method attached and its tuned weights in place, in eval mode.

    It maps normalised images float32 [B, 3, H, W] to logits [B, classes]; `timm.data.resolve_model_data_config(model)`
    tells size and statistics. A run of the protocol `oracle` gives the model of its last epoch.

    `record`: a record of the results folder `out`, as `run` returns it; or the path of a record or of a run's folder,
    also of one that `sctbench export --form trained` wrote. `weights`, `method`: the backbone's checkpoint and the
    method's `file.py:Class`, where the run had files of yours. `device`: auto, cpu, cuda or cuda:N. `Error` if the run
    kept no weights, if they are gone or altered, or if the backbone is another one.
    """
    from harness.records.place import Place
    from harness.training.weights import load as load_weights

    return load_weights(Place.of(record, Path(out)), Path(weights) if weights else None, method, device).model


@_guards.one_class_of_errors()
def predictions(
    record: RunRecord | str | Path,
    out: str | Path = "results",
    *,
    root: str | Path | None = None,
    lists: str | Path | None = None,
    suite: str | None = None,
) -> pd.DataFrame:
    """What a run's model said of every image that it was scored on: a row for each, in the order of the lists.

    Columns: split; image, its name in the list; label; predicted; probability, of the predicted class;
    label_probability; label_name and predicted_name, where classes have names; and one for each class's logit,
    `logit_0` and so on, where they were kept.

    `record`, `out`: as for `load`. `root`, `lists`: folders of the images and of the lists, where you bring them.
    `suite`: its YAML file or the path of its data, if it is one of your own. `Error` if the run kept no predictions, if
    they are gone or altered, or if the lists are not those of the run.
    """
    from harness.data.named_predictions import frame as frame_of
    from harness.execution import runs
    from harness.records.place import Place

    return frame_of(Place.of(record, Path(out)), runs.as_roots(root, lists), suite)


@_guards.one_class_of_errors()
def frame(out: str | Path = "results", *, results: Sequence[str | Path] | None = None) -> pd.DataFrame:
    """The records of a results folder, one row per run, failed ones too. `Error` if it holds none.

    `results`: folders, and packs of them (`sctbench pack`), to read in the place of `out`. A run that several hold is
    taken from the first.

    Among the columns: suite, task, method, seed, protocol, status, accuracy (%), parameters (trained, head excluded),
    seconds; `results`, the name of the folder or pack, and `path`, the record's file in it; `elsewhere`, other results
    that another of them has of the same run.
    """
    from analysis.shown import frame_of_places
    from analysis.sources import check_places

    places = _places(results)
    check_places(places or ())
    return frame_of_places(places or [Path(out)])


def _places(results: Sequence[str | Path] | None) -> list[Path] | None:
    return None if results is None else [Path(one).expanduser() for one in results]


@_guards.one_class_of_errors()
def table(frame: pd.DataFrame) -> Tables:
    """The tables of results of a frame, or of some of its rows: one for each set of runs whose numbers may stand side
    by side, each task by its primary metric. They show themselves as text, and as HTML in a notebook."""
    from analysis.shown import tables_of_frame

    return tables_of_frame(frame)


@_guards.one_class_of_errors()
def report(
    out: str | Path = "results",
    *,
    suite: str | None = None,
    reference: str | None = None,
    ablation: str | Sequence[str] | None = None,
    to: str | Path | None = None,
    metric: str | None = None,
    results: Sequence[str | Path] | None = None,
) -> Path:
    """Write all tables and figures of a results folder, and return the page that shows them, `to`/index.html.

    `suite`: only that one, by its name or the path of your own data; a file of your own: with its groups. `reference`:
    method to test the others against; linear, or the best, if not given. `ablation`: settings to tabulate. `to`:
    `out`/report if not given. `metric`: what they show, a name of `harness.schema.metrics`; each task's primary one if
    not given. `results`: as for `frame`.
    """
    from harness.commands.reports import write

    where, places = Path(to) if to else None, _places(results)
    return write(Path(out), suite, reference, ablation, where, metric, quiet=True, results=places)[0]


@_guards.one_class_of_errors()
def check(method: str) -> dict[str, str]:
    """Check a method (a name, or `file.py:Class`) against the contract on small models: does it count, freeze, train,
    save and merge as it says? Gives `ok`, or `failed: ` and the reason, by the name of each check."""
    from harness.training.method_check import check_method

    return check_method(method)


def __getattr__(name: str) -> Any:
    if name == "Error":
        from harness.errors import HarnessError

        return HarnessError
    if name == "__version__":
        from importlib.metadata import version

        return version("sctbench")
    raise AttributeError(f"module 'sctbench' has no attribute {name!r}")
