"""The check that is run on a GPU, on a CPU: every stage says what it has to say. And what differs on a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from methods.registry import get
from methods.testbed import make_context, small_vit

CHECK = Path(__file__).with_name("check.py")


def test_the_check_runs_dry(tmp_path):
    stages = "env,correctness,ceilings,kernels,trainer,module"
    command = [sys.executable, str(CHECK), "--out", str(tmp_path), "--dry", "--only", stages]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["what"] == "FAILED"]
    assert {row["stage"] for row in rows if row["what"] == "stage took"} == set(stages.split(","))
    gaps = {row["what"]: row["value"] for row in rows if row["stage"] == "correct"}
    assert gaps["map float32 y"] < 1e-6 and gaps["sums torch.bfloat16"] < 1e-5
    assert (tmp_path / "table.md").read_text().count("\n") == len(rows) + 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tuner_leaves_nothing_on_the_cpu():
    model = small_vit().cuda()
    get("boft").configure({}).attach(model, make_context())
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}
