"""The fault campaign: runs are killed, files damaged, disks filled, and every record must be the undisturbed one.

`python -m tests.faults.campaign --kills 200` prints what was done, and what was lost, wrong or done twice; the exit
status is 1 if anything was. All choices follow from the seed; at which instruction a timed kill arrives does not.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import peft.tuners  # noqa: F401  (in every process, once for all)
import torch

from harness import environment
from harness.errors import HarnessError
from harness.execution import worker
from harness.execution.worker import Busy
from harness.records.store import Store, read_record, read_stored
from harness.schema.record import BadRecord
from harness.training import callbacks, cost
from tests import tiny
from tests.faults.dying import PLACES, Moments, child, kill, wait

METHODS = ("lora", "sct", "adalora", "gps", "vpt_deep", ("adapter_pfeiffer", {"dropout": 0.2}))


@dataclasses.dataclass
class Tally:
    """What was done, and what came of it."""

    killed: Counter = dataclasses.field(default_factory=Counter)
    """By where."""

    done: Counter = dataclasses.field(default_factory=Counter)
    """Other faults."""

    runs: int = 0
    lost: list = dataclasses.field(default_factory=list)
    wrong: list = dataclasses.field(default_factory=list)
    duplicated: list = dataclasses.field(default_factory=list)

    @property
    def kills(self):
        return sum(self.killed.values())

    def lines(self):
        places = ", ".join(f"{count} {place}" for place, count in sorted(self.killed.items()))
        faults = ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))
        bad = {"lost": self.lost, "wrong": self.wrong, "duplicated": self.duplicated}
        return [
            f"{self.runs} runs, {self.kills} of their processes killed: {places}",
            f"other faults: {faults}",
            "results " + ", ".join(f"{len(items)} {what}" for what, items in bad.items()),
            *(f"{what}: {item}" for what, items in bad.items() for item in items),
        ]

    @property
    def clean(self):
        return not (self.lost or self.wrong or self.duplicated)


class Campaign:
    """Faults on tiny runs below `root`."""

    def __init__(self, root, seed=0, methods=METHODS):
        self.root, self.random, self.tally = root, random.Random(seed), Tally()
        os.environ["SCTBENCH_CACHE"] = str(root / "cache")
        # Every step is reported, saved and written as progress, so that there is always something to kill.
        callbacks.REPORT_EVERY_SECONDS = worker.PROGRESS_EVERY_SECONDS = 0.0
        cost.LATENCY_SECONDS = 0.0
        torch.set_num_threads(1)  # before the first fork
        environment.packages(), environment.code_state()  # what every process would find out again
        data = tiny.write_data(root / "data")
        self.setup = tiny.setup(root / "undisturbed", data, save_every=0.0)
        worker.init_worker(self.setup)
        self.specs = tiny.specs(methods, drop_path=0.2)
        self.expected, self.seconds, self.moments = {}, {}, {}
        for spec in self.specs:
            self._undisturbed(spec)

    def _undisturbed(self, spec):
        """Reference record of a run, its duration, and how many moments it has. In a child, since torch's backward pass
        must not have been used before a fork."""
        counts = self.root / "moments.json"

        def run():
            moments = Moments()
            moments.install()
            worker.execute_run(spec, self.setup)
            counts.write_text(json.dumps(moments.passed))

        start = time.monotonic()
        assert wait(child(run)) == "done"
        self.seconds[spec.run_id] = time.monotonic() - start
        self.moments[spec.run_id] = json.loads(counts.read_text())
        record = Store(self.setup.root).complete(spec)
        assert record is not None
        self.expected[spec.run_id] = tiny.lasting(record)

    def start(self, root, specs, moments=None):
        """A process that does these runs, waiting for those of others, and notes those that it trained itself."""

        def live():
            if moments:
                moments.install()
            setup = dataclasses.replace(self.setup, root=root)
            for spec in specs:
                steps = []
                while isinstance(
                    record := worker.execute_run(spec, setup, lambda at, to=steps: to.append(at.step)), Busy
                ):
                    time.sleep(0.02)
                with (root.parent / f"{root.name}.log").open("a") as log:
                    kind = record.failure.kind if record.failure else "complete"
                    log.write(f"{spec.run_id} {kind} {'trained' if steps else 'found'}\n")

        return child(live)

    def notes(self, root):
        """What the processes wrote down: run id, how it ended, and whether it was trained."""
        log = root.parent / f"{root.name}.log"
        return [tuple(line.split()) for line in log.read_text().splitlines()] if log.exists() else []

    def disturb(self, root, spec):
        """One process on one run, with one fault. Returns whether it was killed."""
        place = self.random.choices(("any moment", *PLACES), weights=(4, 4, 3, 3, 1))[0]
        if place == "any moment":
            pid = self.start(root, [spec])
            time.sleep(self.random.uniform(0, self.seconds[spec.run_id]))
            kill(pid)
        else:
            number = self.random.randint(1, self.moments[spec.run_id][place])
            pid = self.start(root, [spec], Moments(place, number))
        ended = wait(pid)
        self.look_at_files(root, spec)
        if ended != "killed":
            return False
        self.tally.killed["at any moment" if place == "any moment" else f"inside writes of the {place}"] += 1
        return True

    def look_at_files(self, root, spec):
        """A record in its place must never name a file that is not whole."""
        place, record = Store(root).folder(spec), Store(root).complete(spec)
        for name in record.files if record else ():
            try:
                read_stored(place, record, name)
            except HarnessError as error:
                self.tally.wrong.append(str(error))

    def damage(self, path):
        """Cut a file off, or flip one of its bits."""
        content = bytearray(path.read_bytes())
        at = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            content, what = content[:at], "truncated"
        else:
            content[at] ^= 1 << self.random.randrange(8)
            what = "with a flipped bit"
        path.write_bytes(content)
        self.tally.done[f"{'states' if 'state' in path.parts else 'records'} {what}"] += 1

    def one_run(self, number, spec):
        """A run that is killed a few times, its newest state damaged now and then, perhaps its record too; then it may
        end in peace."""
        root = self.root / f"run-{number}"
        store = Store(root)
        for _ in range(self.random.randint(1, 4)):
            states = sorted((store.folder(spec) / "state").glob("*.safetensors"))
            if states and self.random.random() < 0.25:
                self.damage(states[-1])
            self.disturb(root, spec)
        self.finish(root, [spec])
        if self.random.random() < 0.25:
            self.spoil(root, spec)

    def spoil(self, root, spec):
        """Damage a finished record: it must be set aside and done again."""
        path = Store(root).folder(spec) / "record.json"
        (root.parent / f"{root.name}.log").unlink()
        self.damage(path)
        try:
            read_record(path)
        except BadRecord:
            self.disturb(root, spec)
            self.finish(root, [spec])
            if not list((root / "corrupt").glob("*.reason.txt")):
                self.tally.lost.append(f"{root}: the damaged record was not set aside")

    def finish(self, root, specs):
        """Without further faults; then compare."""
        before = {spec.run_id: self._bytes(root, spec) for spec in specs}
        if wait(self.start(root, specs)) != "done":
            self.tally.lost.append(f"{root}: the last process failed")
        trained = Counter(run_id for run_id, kind, how in self.notes(root) if (kind, how) == ("complete", "trained"))
        for spec in specs:
            self.tally.runs += 1
            record = Store(root).complete(spec)
            if record is None:
                self.tally.lost.append(f"{root}: {spec.method}")
            self.look_at_files(root, spec)
            if record is not None and tiny.lasting(record) != self.expected[spec.run_id]:
                self.tally.wrong.append(f"{root}: {spec.method}")
            again = before[spec.run_id] is not None and before[spec.run_id] != self._bytes(root, spec)
            if trained[spec.run_id] > 1 or again:
                self.tally.duplicated.append(f"{root}: {spec.method}")

    def _bytes(self, root, spec):
        """Content of a complete record."""
        store = Store(root)
        return (store.folder(spec) / "record.json").read_bytes() if store.complete(spec) else None

    def together(self, number, count=3):
        """Several processes on one folder; one of them is killed and started again."""
        root = self.root / f"together-{number}"
        specs = self.random.sample(self.specs, min(3, len(self.specs)))
        pids = [self.start(root, self.random.sample(specs, len(specs))) for _ in range(count)]
        time.sleep(self.random.uniform(0, sum(self.seconds[spec.run_id] for spec in specs)))
        kill(pids[0])
        self.tally.killed["beside others on one folder"] += wait(pids[0]) == "killed"
        pids[0] = self.start(root, specs)
        if [wait(pid) for pid in pids] != ["done"] * count:
            self.tally.lost.append(f"{root}: a process failed")
        self.tally.done["folders shared by executors"] += 1
        self.finish(root, specs)

    def on_a_small_disk(self, number, kilobytes):
        """A disk that fills up, is seen full, and is enlarged."""
        root = self.root / f"full-{number}"
        specs = self.random.sample(self.specs, 2)
        with Tmpfs(root, f"{kilobytes}k") as disk:
            assert wait(self.start(root, specs)) == "done"
            kinds = {kind for _, kind, _ in self.notes(root)}
            if not kinds <= {"disk_full", "complete"}:
                self.tally.wrong.append(f"{root}: {kinds}")
            self.tally.done["full disks"] += "disk_full" in kinds
            disk.remount("size=64m")
            self.finish(root, specs)

    def on_a_read_only_disk(self, number):
        """A folder that cannot be written to, after one of two runs."""
        root = self.root / f"read-only-{number}"
        specs = self.random.sample(self.specs, 2)
        with Tmpfs(root, "64m") as disk:
            assert wait(self.start(root, specs[:1])) == "done"
            disk.remount("ro")
            assert wait(self.start(root, specs)) == "done"
            ends = [(kind, how) for _, kind, how in self.notes(root)]
            if ends != [("complete", "trained"), ("complete", "found"), ("read_only", "found")]:
                self.tally.wrong.append(f"{root}: {ends}")
            self.tally.done["read-only folders"] += 1
            disk.remount("rw")
            self.finish(root, specs)


class Tmpfs:
    """A small disk of its own, as a context manager. Needs root."""

    def __init__(self, folder, size):
        self.folder, self.size = folder, size

    def __enter__(self):
        self.folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", self.folder], check=True)
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.folder], check=True)

    def remount(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


def why_no_mount(folder):
    """Why small disks cannot be made here; empty if they can."""
    try:
        with Tmpfs(folder / "probe", "64k"):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"mounting a tmpfs is not possible here ({error})"


def main(kills, seed):
    """The whole campaign; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        campaign, start = Campaign(Path(folder), seed), time.monotonic()
        no_mount = why_no_mount(Path(folder))
        for number in range(max(1, kills // 20)):
            campaign.together(number)
            if not no_mount:
                campaign.on_a_small_disk(number, campaign.random.randint(4, 700))
        if no_mount:
            print(f"no full and read-only disks: {no_mount}")
        else:
            campaign.on_a_read_only_disk(0)
        number = 0
        while campaign.tally.kills < kills:
            campaign.one_run(number, campaign.specs[number % len(campaign.specs)])
            number += 1
            if number % 10 == 0:
                print(f"{campaign.tally.kills} kills, {time.monotonic() - start:.0f} s", flush=True)
        print("\n".join(campaign.tally.lines()))
        return 0 if campaign.tally.clean else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
