"""The commands about clusters: submit, look, cancel, try again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands import options
from harness.terminal import console, counting, errors, print_rows, tell

slurm_app = typer.Typer()


ProfileFile = Annotated[
    str | None, typer.Option(help="A cluster profile (YAML, see slurm/profiles/), or `local`: no cluster needed.")
]
Partition = Annotated[str | None, typer.Option(help="SLURM partition.")]
Account = Annotated[str | None, typer.Option(help="SLURM account.")]
Qos = Annotated[str | None, typer.Option(help="SLURM quality of service.")]
TimeLimit = Annotated[str | None, typer.Option(help="Time limit of a job: 240 (minutes), 4:00:00; 4 h if not given.")]
GpuCount = Annotated[int | None, typer.Option(help="GPUs of a job: 1, or 0 to compute on CPUs; 1 if not given.")]
CpuCount = Annotated[int | None, typer.Option(help="CPU cores of a job; 4 if not given.")]
Memory = Annotated[str | None, typer.Option(help="Memory of a job, e.g. 32GB.")]
Constraint = Annotated[str | None, typer.Option(help="Node features that a job needs.")]
ParallelJobs = Annotated[int | None, typer.Option(help="Jobs that may run at the same time.")]
RunsPerJob = Annotated[
    int | None, typer.Option(help="Runs that a job does; as many as fit into its time if not given.")
]
SetupLines = Annotated[list[str] | None, typer.Option(help="Shell line that each job runs first; may be repeated.")]


def read_profile(parameters: Mapping[str, Any]) -> Any:
    """Name of the cluster (`slurm` or `local`), settings given as flags, and the profile's file if there is one."""
    from slurm.profile import KEYS, read_file

    cluster = parameters["cluster"]
    file = read_file(Path(cluster).expanduser()) if cluster not in (None, "local") else None
    flags = {key: value for key in KEYS if (value := parameters.get(key)) is not None}
    return "local" if cluster == "local" else "slurm", flags, file


_NOT_LOCAL = ("partition", "account", "qos", "cpus", "mem", "constraint", "runs_per_job")
"""Settings that processes of this machine do without."""


@slurm_app.command()
def submit(
    context: typer.Context,
    experiment: options.ExperimentFile = None,
    suite: options.SuiteName = None,
    methods: options.MethodNames = None,
    tasks: options.TaskNames = None,
    seeds: options.SeedCount = None,
    protocol: options.ProtocolName = None,
    trials: options.TrialCount = None,
    backbone: options.BackboneName = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    recipe: options.RecipeFields = None,
    shots: options.ShotCounts = None,
    statistics: options.Statistics = None,
    fit: options.Fit = None,
    interpolation: options.Interpolation = None,
    cluster: ProfileFile = None,
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    time: TimeLimit = None,
    gpus: GpuCount = None,
    cpus: CpuCount = None,
    mem: Memory = None,
    constraint: Constraint = None,
    parallel: ParallelJobs = None,
    runs_per_job: RunsPerJob = None,
    setup: SetupLines = None,
    root: options.DataFolder = None,
    lists: options.ListFolder = None,
    out: options.OutFolder = Path("results"),
    redo: options.Redo = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show jobs, scripts and hours; submit nothing.")] = False,
) -> None:
    """Submit what is missing of a selection to SLURM, and return; what waits or runs already is left alone."""
    from harness import device as devices
    from harness.data.lists import Roots, check_roots, folders_taken
    from harness.data.located import refuse_unusable
    from harness.data.splits import not_official
    from harness.execution.preparations import tell_weights
    from harness.execution.worker import setup_for
    from harness.records.stale import check_redo
    from harness.records.store import Store
    from slurm import submit as submission
    from slurm.clusters import CLUSTERS
    from slurm.profile import make_profile
    from slurm.submissions import Log

    selection = options.read_selection(context.params)
    name, flags, file = read_profile(context.params)
    redo_stale = check_redo(redo)
    tell_weights(selection, tell)
    roots = Roots(data=root, lists=lists)
    if not dry_run or root or lists:
        check_roots(selection.suite, selection.tasks, roots)
        for line in folders_taken(selection.suite, selection.tasks, roots):
            errors.print(line, markup=False, highlight=False)
    profile, where, log = make_profile(flags, file), CLUSTERS[name], Log(out)
    for warning in not_official(selection.suite, selection.tasks, roots, selection.shots, selection.preprocessing):
        errors.print(f"warning: {warning}", markup=False, highlight=False)
    if name == "local":  # of another cluster the device is not known here
        device = devices.choose("auto" if profile.device == "cuda" else profile.device)
        selection = replace(selection, precision=devices.precision_in_use("auto", device))
    if name == "local" and (idle := [f"--{key.replace('_', '-')}" for key in flags if key in _NOT_LOCAL]):
        errors.print(f"warning: with --cluster local these mean nothing: {', '.join(idle)}", highlight=False)
    with nullcontext() if dry_run else log.alone():  # a dry run leaves no files
        missing = submission.todo(selection, Store(out), submission.held_keys(log, where), redo_stale)
        _tell_todo(missing, out)
        if not missing.ready and not missing.blocked:
            return
        if not dry_run:
            with counting("lists and images looked for") as advance:
                refuse_unusable(selection, [*missing.ready, *missing.blocked], roots, advance=advance)
        plan = submission.plan_selection(selection, missing, profile, where, _limit(where, dry_run))
        for warning in plan.warnings:
            errors.print(f"warning: {warning}")
        _tell_plan(plan, profile, submission.expected_hours(plan))
        if dry_run:
            _tell_scripts(plan, profile, log, name)
            return
        told = replace(setup_for(selection, out, roots, profile.device), redo_stale=redo_stale)
        submission.send(plan, submission.absolute(told), profile, where, log, console.print)
    console.print("`sctbench status` shows how they stand; the same command again submits what is missing then.")


def _limit(cluster: Any, dry_run: bool) -> int:
    """Jobs that one array may have; a dry run needs no cluster."""
    from slurm.errors import ClusterError
    from slurm.scheduler import USUAL_LIMIT

    try:
        return cluster.limit()
    except ClusterError as error:
        if not dry_run:
            raise
        errors.print(f"warning: arrays of at most {USUAL_LIMIT} jobs are assumed: {error}", highlight=False)
        return USUAL_LIMIT


def _tell_todo(missing: Any, out: Path) -> None:
    """What is there, what is under way, what is to be submitted."""
    from harness.records.stale import warning

    total = missing.complete + missing.held + len(missing.failed) + len(missing.ready) + len(missing.blocked)
    console.print(
        f"{total} runs: {missing.complete} complete, {missing.held} submitted already, "
        f"{len(missing.ready) + len(missing.blocked)} to submit. Records: {out / 'runs'}"
    )
    if text := warning(missing.stale):
        errors.print(f"warning: {text}.", highlight=False, markup=False)
    if missing.failed:
        errors.print(
            f"{len(missing.failed)} failed in a way that they would fail again, or wait for trials that did, and are "
            "left out: see `sctbench status`; `sctbench retry --failed` submits what failed once more."
        )


def _tell_plan(plan: Any, profile: Any, hours: float | None) -> None:
    from slurm.planning import rate

    rows = [
        {
            "array": array.name,
            "jobs": len(array.jobs) or 1,
            "runs": sum(map(len, array.jobs)) or "tables",
            "at a time": array.parallel,
            "after": ", ".join([*array.after, *array.after_jobs]),
        }
        for array in [*plan.arrays, plan.report]
    ]
    print_rows(rows, False)
    kind, jobs = "GPU" if profile.gpus else "job", sum(len(array.jobs) for array in plan.arrays)
    estimated = "?" if hours is None else f"{hours:.2g}"
    console.print(
        f"Estimated {kind} hours: {estimated}, start-up included, assuming {rate(profile) / 1e12:.3g} TFLOP/s. The "
        f"jobs' time limits add up to {jobs * profile.time / 60:.3g}; a job that reaches its own queues up again."
    )


def _tell_scripts(plan: Any, profile: Any, log: Any, cluster: str) -> None:
    from slurm.sbatch import script

    for array in [*plan.arrays, plan.report] if cluster == "slurm" else []:
        after = [*(f"<job of {name}>" for name in array.after), *array.after_jobs]
        folder = log.root.absolute() / plan.name / array.name.rpartition(".")[2]
        console.print(f"\n[bold]{array.name}[/bold]", markup=True)
        console.print(script(profile, array, folder, after), highlight=False, markup=False)
    console.print("Nothing was submitted.")


@slurm_app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run's id, or how it begins; see `sctbench status`.")],
    out: options.OutFolder = Path("results"),
    lines: Annotated[int, typer.Option(min=1, help="How many lines from the end.")] = 40,
) -> None:
    """Show the end of the log of the job that a run was in last."""
    from slurm.actions import find
    from slurm.status import log_file, places, tail
    from slurm.submissions import Log

    log = Log(out)
    known = places(log)
    path = log_file(log, known[find(known, run)])
    console.print(f"{path}:", highlight=False)
    for line in tail(path, lines) or ["(nothing yet)"]:
        console.print(line, highlight=False, markup=False)


@slurm_app.command()
def cancel(
    runs: Annotated[list[str] | None, typer.Argument(help="Ids of runs; their jobs are cancelled.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All jobs of this results folder.")] = False,
    out: options.OutFolder = Path("results"),
) -> None:
    """Cancel submitted runs. What they have done is kept: submitted again, they go on from there."""
    from harness.errors import HarnessError
    from slurm.actions import cancel as cancel_runs

    if bool(runs) == everything:
        raise HarnessError("say which: ids of runs, or --all")
    stopped = cancel_runs(out, runs or [])
    print_rows([state.as_row() for state in stopped], False)
    console.print(f"{len(stopped)} run(s) cancelled; a job takes all its runs along.")


@slurm_app.command()
def retry(
    context: typer.Context,
    cluster: ProfileFile = None,
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    time: TimeLimit = None,
    gpus: GpuCount = None,
    cpus: CpuCount = None,
    mem: Memory = None,
    constraint: Constraint = None,
    parallel: ParallelJobs = None,
    runs_per_job: RunsPerJob = None,
    setup: SetupLines = None,
    failed: Annotated[bool, typer.Option("--failed", help="Runs that failed, whatever the reason.")] = False,
    out: options.OutFolder = Path("results"),
) -> None:
    """Submit runs that failed once more, with the profile of before; flags change it (--mem 64GB)."""
    from harness.errors import HarnessError
    from slurm.actions import retry as submit_again
    from slurm.profile import make_profile

    if not failed:
        raise HarnessError("say what to retry: --failed. What is merely missing, `sctbench submit` submits")
    name, flags, file = read_profile(context.params)
    if name == "local":
        raise HarnessError("--cluster local: runs are tried again on the cluster they were on, leave it out")
    given = make_profile(flags, file).as_dict()
    changes = {key: given[key] for key in {*flags, *(file.values if file else {})}}
    count, problems = submit_again(out, changes, console.print)
    console.print(f"{count} run(s) submitted again.")
    for problem in problems:
        errors.print(f"not submitted: {problem}", highlight=False, markup=False)
    if problems:
        raise typer.Exit(1)
