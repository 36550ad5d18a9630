"""A mocked cluster: programs named like SLURM's that keep its jobs in one JSON file, and what tests do to them.

As in the real one, an array's task that is cancelled while it waits leaves no row in sacct, and sacct lags.
"""

import json
import os
import re
import sys
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun")


class Fake:
    """The cluster in a folder."""

    def __init__(self, folder):
        self.file = Path(folder) / "jobs.json"

    def read(self):
        return json.loads(self.file.read_text())

    def write(self, state):
        self.file.write_text(json.dumps(state))

    def install(self, monkeypatch):
        """Put the programs in front of the PATH."""
        self.write({"next": 100, "limit": 1001, "down": False, "refuse_after": None, "jobs": {}, "calls": []})
        for name in PROGRAMS:
            program = self.file.parent / name
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {self.file.parent} "$@"\n')
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.file.parent}:{os.environ['PATH']}")
        return self

    def set(self, **values):
        self.write(self.read() | values)

    def jobs(self):
        return self.read()["jobs"]

    def change(self, job, **values):
        """Change a job: `queue` is its state for squeue ("": gone), `accounts` that for sacct ("": no row)."""
        state = self.read()
        state["jobs"][job] |= values
        self.write(state)

    def calls(self, name):
        return [call[1:] for call in self.read()["calls"] if call[0] == name]


def sbatch(state, arguments):
    if state["refuse_after"] is not None:
        if state["refuse_after"] == 0:
            sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        state["refuse_after"] -= 1
    script = Path(arguments[-1]).read_text()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(.*)", script))
    main, state["next"] = str(state["next"]), state["next"] + 1
    array = re.match(r"0-(\d+)", options.get("array", ""))
    names = [f"{main}_{i}" for i in range(int(array[1]) + 1)] if array else [main]
    if len(names) >= state["limit"]:
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    for name in names:
        state["jobs"][name] = {
            "name": options["job-name"],
            "queue": "PENDING",
            "accounts": "PENDING",
            "options": options,
        }
    print(f"Submitted batch job {main}")


def squeue(state, arguments):
    wanted = next(a for a in arguments if a.startswith("--name=")).removeprefix("--name=").split(",")
    for job, values in state["jobs"].items():
        if values["queue"] and values["name"] in wanted:
            node = "n1" if values["queue"] == "RUNNING" else ""
            print(f"{job}|{values['name']}|{values['queue']}|{values.get('reason', 'None')}|1:00:00|{node}")


def sacct(state, arguments):
    wanted = arguments[arguments.index("-j") + 1].split(",")
    for job, values in state["jobs"].items():
        if values["accounts"] and job.partition("_")[0] in wanted:
            print(f"{job}|{values['accounts']}")


def scontrol(state, arguments):
    if arguments[0] == "show":
        print(f"Configuration data\nMaxArraySize            = {state['limit']}\nMaxJobCount = 10000")


def scancel(state, arguments):
    ids = [argument for argument in arguments if not argument.startswith("-")]
    for job, values in state["jobs"].items():
        if job in ids:
            values["accounts"] = "" if values["queue"] == "PENDING" and "_" in job else "CANCELLED by 0"
        elif job.partition("_")[0] in ids:  # the whole array
            values["accounts"] = "CANCELLED by 0"
        else:
            continue
        values["queue"] = ""


def main():
    name, folder, *arguments = sys.argv[1:]
    fake = Fake(folder)
    state = fake.read()
    if state["down"]:
        sys.exit(f"{name}: error: Unable to contact slurm controller (connect failure)")
    state["calls"].append([name, *arguments])
    globals()[name](state, arguments)
    fake.write(state)


if __name__ == "__main__":
    main()
