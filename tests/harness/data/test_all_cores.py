"""Work in processes: they end with the one that started them."""

import multiprocessing as mp
import time

import pytest

from harness.data import all_cores


def _idle(connection):
    all_cores.begin(connection)
    time.sleep(60)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_processes_end_when_the_one_that_started_them_is_gone(start):
    context = mp.get_context(start)
    theirs, ours = context.Pipe(duplex=False)
    process = context.Process(target=_idle, args=(theirs,))
    process.start()
    theirs.close()
    ours.close()  # as the system does when a process is killed
    process.join(40)
    assert process.exitcode == 1


def _squares(start, items):
    return start, [item**2 for item in items]


def test_parts_come_in_order_and_no_more_are_taken_than_are_worked_on():
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    with all_cores.processes(2) as pool:
        parts = all_cores.in_parts(pool, _squares, items(), at_once=4, ahead=3)
        assert next(parts) == (0, (0, [0, 1, 4, 9]))
        assert len(taken) == 12
        assert [square for _, (_, part) in parts for square in part] == [item**2 for item in range(4, 50)]
