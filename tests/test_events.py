"""The queue of events, by hand."""

import math

import pytest

from fedsim.events import EventQueue


def test_the_earliest_first_and_ties_by_client() -> None:
    queue = EventQueue([(2.0, 1), (1.5, 9), (2.0, 0)])
    queue.push(1.5, 4)
    assert len(queue) == 4 and 9 in queue and 2 not in queue
    assert [queue.pop(), queue.pop()] == [(1.5, 4), (1.5, 9)]
    assert 9 not in queue
    queue.push(0.25, 9)  # who has finished may start again
    assert [queue.pop() for _ in range(3)] == [(0.25, 9), (2.0, 0), (2.0, 1)]
    assert not queue


def test_a_queue_made_of_its_pairs_goes_on_alike() -> None:
    queue = EventQueue([(0.1 * k % 0.7, k) for k in range(20)])
    for _ in range(5):
        queue.pop()
    again = EventQueue(reversed(queue.pairs()))
    assert [again.pop() for _ in range(15)] == [queue.pop() for _ in range(15)]


def test_who_is_busy_cannot_start_and_no_time_is_infinite() -> None:
    queue = EventQueue([(1.0, 3)])
    with pytest.raises(ValueError, match="client 3 is busy"):
        queue.push(2.0, 3)
    for time in (math.nan, math.inf):
        with pytest.raises(ValueError, match="client 4 would finish"):
            queue.push(time, 4)
