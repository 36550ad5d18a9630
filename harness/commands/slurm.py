"""The commands about submitted runs: submit, cancel, retry, read a log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands import options
from harness.commands.status import row_of
from harness.errors import HarnessError
from harness.terminal import console, errors, print_rows, tell

slurm_app = typer.Typer()

TimeLimit = Annotated[str | None, typer.Option(help="Time limit of a job: 240 (minutes), 4:00:00; 4 h if not given.")]
SetupLines = Annotated[list[str] | None, typer.Option(help="Shell line that each job runs first; may be repeated.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What a job asks the scheduler for: a file, and flags that override it."""

    profile: Annotated[Path | None, typer.Option(help="Profile (YAML, see slurm/profiles/); flags override it.")] = None
    scheduler: Annotated[
        str | None, typer.Option(help="slurm, or local: processes of this machine; slurm if not given.")
    ] = None
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None
    account: Annotated[str | None, typer.Option(help="SLURM account.")] = None
    qos: Annotated[str | None, typer.Option(help="SLURM quality of service.")] = None
    time: TimeLimit = None
    gpus: Annotated[int | None, typer.Option(help="GPUs of a job: 1, or 0 to compute on CPUs; 1 if not given.")] = None
    cpus: Annotated[int | None, typer.Option(help="CPU cores of a job; 4 if not given.")] = None
    mem: Annotated[str | None, typer.Option(help="Memory of a job, e.g. 32GB.")] = None
    constraint: Annotated[str | None, typer.Option(help="Node features that a job needs.")] = None
    parallel: Annotated[int | None, typer.Option(help="Jobs that may run at the same time.")] = None
    runs_per_job: Annotated[
        int | None, typer.Option(help="Runs that a job does; as many as fit into its time if not given.")
    ] = None
    setup: SetupLines = None

    def read(self) -> tuple[dict[str, Any], Any]:
        """The settings that were given as flags, and the profile's file if there is one."""
        from slurm.profile_file import read_file

        flags = options.given(self)
        path = flags.pop("profile", None)
        return flags, read_file(path.expanduser()) if path else None


@slurm_app.command()
@options.grouped
def submit(
    asked: options.Asked,
    profile: ProfileOptions,
    folders: options.DataFolders,
    kept: options.Kept,
    out: options.OutFolder = Path("results"),
    track: options.Track = None,
    redo: options.Redo = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show jobs, scripts and hours; submit nothing.")] = False,
) -> None:
    """Submit what is missing of a selection to a scheduler; runs that wait or run already are left alone."""
    from harness.records.stale import check_redo
    from harness.training.trackers import check_track
    from slurm.profile_file import make_profile
    from slurm.submit import Order, rehearse
    from slurm.submit import submit as submit_order

    order = Order(
        selection=asked.selection(),
        profile=make_profile(*profile.read()),
        out=out,
        roots=folders.roots(),
        keeping=kept.keeping(),
        track=check_track(track),
        redo_stale=check_redo(redo),
    )
    if dry_run:
        rehearse(order, tell)
    elif submit_order(order, tell):
        tell("`sctbench status` shows how the runs stand; the same command again submits what is still missing then.")


@slurm_app.command()
def logs(
    run: Annotated[str, typer.Argument(help="A run's id, or its beginning; see `sctbench status`.")],
    out: options.OutFolder = Path("results"),
    lines: Annotated[int, typer.Option(min=1, help="Number of lines from the end.")] = 40,
) -> None:
    """Show the end of the log of the job that a run was last in."""
    from slurm.actions import log_tail

    path, text = log_tail(out, run, lines)
    for line in [f"{path}:", *(text or ["(nothing yet)"])]:
        console.print(line, highlight=False, markup=False)


@slurm_app.command()
def cancel(
    runs: Annotated[list[str] | None, typer.Argument(help="Ids of runs; their jobs are cancelled.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All jobs of this results folder.")] = False,
    out: options.OutFolder = Path("results"),
) -> None:
    """Cancel submitted runs. What they have done is kept: submitted again, they go on from there."""
    from slurm.actions import cancel as cancel_runs

    if bool(runs) == everything:
        raise HarnessError("say what to cancel: ids of runs, or --all")
    stopped = cancel_runs(out, runs or [])
    print_rows([row_of(run.as_status()) for run in stopped], False)
    console.print(f"{len(stopped)} run(s) cancelled: all that were still to be done in their jobs.")


@slurm_app.command()
@options.grouped
def retry(
    profile: ProfileOptions,
    failed: Annotated[bool, typer.Option("--failed", help="Runs that failed, whatever the reason.")] = False,
    out: options.OutFolder = Path("results"),
) -> None:
    """Submit runs that failed again, with the profile they had; flags change it (--mem 64GB)."""
    from slurm.actions import retry as submit_again
    from slurm.profile_file import make_profile

    if not failed:
        raise HarnessError("say what to retry: --failed. `sctbench submit` submits what is merely missing")
    flags, file = profile.read()
    given = make_profile(flags, file).as_dict()
    changes = {key: given[key] for key in {*flags, *(file.values if file else {})}}
    count, problems = submit_again(out, changes, tell)
    console.print(f"{count} run(s) submitted again.")
    for problem in problems:
        errors.print(f"not submitted: {problem}", highlight=False, markup=False)
    if problems:
        raise typer.Exit(1)
