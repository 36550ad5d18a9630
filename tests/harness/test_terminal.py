"""What the commands share."""

import pytest

from harness.terminal import tracked


@pytest.mark.parametrize(
    ("total", "every", "counts"), [(250, 100, [100, 200, 250]), (200, 100, [100, 200]), (3, 1, [1, 2, 3]), (0, 1, [])]
)
def test_progress_is_reported_every_so_often_and_at_the_end(total, every, counts):
    reported = []
    items = tracked(iter(range(total)), total, lambda *count: reported.append(count), every)
    assert list(items) == list(range(total))
    assert reported == [(count, total) for count in counts]
    assert list(tracked("ab", 2, None)) == ["a", "b"]
