"""What the display shows of runs under way."""

import io

from rich.console import Console

from harness.execution.progress import Display
from harness.training.callbacks import Decoding, DecodingReporter, Progress
from tests.examples import make_spec


def test_a_run_is_shown_while_its_images_are_decoded_and_then_while_it_trains():
    shown, spec = Display(1, Console(file=io.StringIO(), force_terminal=True)), make_spec()
    shown(spec, Decoding(done=500, total=2000, images_per_second=125.0))
    (line,) = [task for task in shown.bars.tasks if task.fields["detail"]]
    assert (line.completed, line.total, line.fields["detail"]) == (500, 2000, "decoding images  125 img/s")
    shown(spec, Progress(epoch=1, epochs=2, step=3, steps=8, loss=0.5, accuracy=50.0, images_per_second=9.0))
    assert (line.completed, line.total) == (3, 8) and line.fields["detail"].startswith("epoch 1/2")


def test_lists_that_are_decoded_at_once_are_not_reported(monkeypatch):
    seen, times = [], iter([0.0, 0.1, 0.4, 0.5, 0.9])
    monkeypatch.setattr("harness.training.callbacks.time.perf_counter", lambda: next(times))
    advance = DecodingReporter(seen.append)
    for done in (32, 64, 10, 20):  # the third is of another list
        advance(done, 64)
    assert [(at.done, round(at.images_per_second)) for at in seen] == [(64, 160), (20, 50)]
