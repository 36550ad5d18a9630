"""The command `sctbench` in this process: a new one takes seconds to import what it needs."""

import os
from contextlib import chdir
from unittest import mock

from typer.testing import CliRunner

from harness.commands.main import app
from methods import registry


def sctbench(*arguments, cwd, ok=True):
    """What the command prints in folder `cwd`; whether it ends well must be `ok`."""
    # Methods known by path are forgotten afterwards, as with the end of a process.
    with chdir(cwd), mock.patch.dict(os.environ, {"COLUMNS": "120"}), mock.patch.dict(registry._external):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    output = done.output + (str(done.exception) if done.exception else "")
    assert (done.exit_code == 0) == ok, output
    return output
