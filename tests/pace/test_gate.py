"""Who is late: against a plain sort, whatever the order of drawing; kept replies by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedsim.admission import Admission, AdmittedReplies
from fedsim.errors import ConfigError, ResumeError
from fedsim.pace import gate
from fedsim.pace.base import Hurried
from fedsim.pace.deadline import Deadline
from fedsim.pace.gate import Pace
from fedsim.pace.over_selection import OverSelection
from fedsim.records import NUM_EXAMPLES, Chunk, Instructions, Params, Replies, to_record
from fedsim.rounds import Evaluation, RoundReport
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from tests.strategies._toy import (
    Masks,
    Stacked,
    ToyGrid,
    ToyMeter,
    chunk,
    failing,
    loop,
    model,
    quadratic,
    reply,
)

X = {"x": torch.tensor([1.0])}
"""The model that is sent: four bytes, so that no reply is shorter."""


class Table(ToyMeter):
    """Client k is busy for `work_N[k]` seconds, and each byte that it sends takes `byte_N[k]`."""

    def __init__(self, work_N: np.ndarray, byte_N: np.ndarray | float = 0.0) -> None:
        self.work_N = work_N
        self.byte_N = np.broadcast_to(byte_N, work_N.shape)

    def busy(self, replies: AdmittedReplies, clients: np.ndarray, unheard: int = 0) -> np.ndarray:
        up_K = np.array([replies.received_bytes.get(k, unheard) for k in clients.tolist()])
        seconds_K: np.ndarray = self.work_N[clients] + up_K * self.byte_N[clients]
        return seconds_K


class OneByOne(Replies):
    """Messages that are made as they are drawn, as the sequential engine makes them."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def __iter__(self) -> Iterator[Message]:
        yield from self.messages

    def chunks(self) -> Iterator[Chunk]:
        raise AssertionError("admission stacks messages")


def instructions(count: int) -> Instructions:
    index = np.arange(count)
    return Instructions(
        message_type="train",
        server_round=1,
        client_index=index,
        node_ids=index + 100,
        arrays=to_record(X, zero_copy=True),
        config={},
    )


def admit(
    received: Replies | list[Message],
    rules: Hurried,
    times: Table,
    weigh: Callable[[RecordDict], int] = lambda content: 4,
    sent: Instructions | None = None,
) -> AdmittedReplies:
    replies = Admission().admit(sent or instructions(len(times.work_N)), received, X)
    replies.weigh = weigh
    replies.gate = Pace(rules, times).gate(1, X, 10.0)
    return replies


def split(clients: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return [part for part in np.split(clients, np.cumsum(sizes)) if len(part)]


@pytest.mark.parametrize("how", ["stacked", "one by one", "from the network", "for anybody"])
@pytest.mark.parametrize("trial", range(12))
def test_who_is_used_is_who_a_sort_puts_first(how: str, trial: int) -> None:
    """Ties, failures, bad replies, replies of any length, drawn in any order."""
    rng = np.random.default_rng(trial)
    count, wanted = int(rng.integers(5, 60)), int(rng.integers(1, 40))
    deadline_s = float(rng.choice([4.0, 2.5, 99.0]))
    rules = OverSelection(replies=wanted, seconds=deadline_s, late=("drop", "keep")[trial % 2])
    if how == "for anybody":
        rules = OverSelection(replies=wanted, seconds=deadline_s)
    times = Table(rng.integers(1, 12, count) / 4, rng.integers(0, 3, count) / 64)
    length_N = rng.integers(4, 40, count)
    bad_N, failed_N = rng.random((2, count)) < 0.2
    bad_N &= ~failed_N
    sent, order = instructions(count), rng.permutation(count)

    def weigh(content: RecordDict) -> int:
        return int(length_N[int(content["metrics"]["who"])])

    if how == "stacked":  # one row is weighed of each chunk: here, chunks of one
        parts = []
        for k in order.tolist():
            row = chunk([k], torch.full((1, 1), 2.0 + k), -1.0 if bad_N[k] else 1.0)
            row.metrics["who"] = np.array([float(k)])
            parts.append(
                row
                if not failed_N[k]
                else Chunk(client_index=np.arange(0), arrays={}, errors={k: "?"})
            )
        received: Replies | list[Message] = Stacked(*parts)
    else:
        messages = []
        for k in order.tolist():
            answer = reply(sent[k], {"x": torch.tensor([2.0 + k])}, {"who": float(k)},
                           examples=-1 if bad_N[k] else 1)  # fmt: skip
            messages.append(failing(sent[k]) if failed_N[k] else answer)
        received = OneByOne(messages) if how == "one by one" else messages
    replies = admit(received, rules, times, weigh, sent)
    if how == "for anybody":
        assert all(m.has_content() for m in replies)
    else:
        drawn = list(replies.chunks())
        values = {
            k: float(row)
            for c in drawn
            for k, row in zip(c.client_index, c.arrays["x"], strict=True)
        }
        assert values == {k: 2.0 + k for k in replies.admitted}

    seconds_N = times.work_N + length_N * times.byte_N
    good = [k for k in range(count) if not bad_N[k] and not failed_N[k]]
    first = sorted(good, key=lambda k: (seconds_N[k], k))
    used = [k for k in first if seconds_N[k] <= deadline_s][:wanted]
    assert sorted(replies.admitted) == sorted(used)
    closed = replies.gate
    assert closed is not None and closed.late == set(good) - set(used)
    assert replies.late == len(closed.late)
    assert replies.rejected == {
        word: n for word, n in {"error": failed_N.sum(), "weight": bad_N.sum()}.items() if n
    }
    enough = len(used) >= min(wanted, count)
    there = used if enough else np.flatnonzero(~failed_N)
    assert closed.closes == 10.0 + min(deadline_s, max(seconds_N[there], default=0.0))
    if rules.late == "keep":
        state = closed.pace.state_dict()
        assert sorted(state["clients"].tolist()) == sorted(closed.late)  # type: ignore[union-attr]
        for k, time in zip(state["clients"], state["arrive"], strict=True):  # type: ignore[arg-type]
            assert time == 10.0 + seconds_N[k]


def test_few_replies_are_held_and_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in the order of arrival, all is known at once. Drawn the other way round, who seems to
    be late is held until as many have come as are waited for: they might fail."""
    count, memory, held = 40, torch.zeros(4, 1), []
    copy = gate._copy

    class Reused(Stacked):
        """An engine that writes over what it gave."""

        def chunks(self) -> Iterator[Chunk]:
            for start in range(0, count, 4):
                memory.copy_(torch.arange(start, start + 4)[:, None])
                yield chunk(np.arange(start, start + 4), memory)

    def noted(part: Chunk) -> Chunk:
        held.append(len(part))
        return copy(part)

    monkeypatch.setattr(gate, "_copy", noted)

    def used(rules: Hurried, times: Table, size: int) -> list[int]:
        held.clear()
        order: list[int] = []
        for part in admit(Reused(), rules, times, lambda content: size).chunks():
            assert part.arrays["x"].flatten().tolist() == part.client_index.tolist()
            order += part.client_index.tolist()
        return order

    slow_first, slow_last = np.linspace(2, 1, count), np.linspace(1, 2, count)
    first = OverSelection(replies=10)
    assert used(first, Table(slow_last, 1e-9), 400) == list(range(10)) and not held
    assert used(first, Table(slow_first, 1e-9), 400) == list(range(30, 40)) and held == [4] * 7 + [
        2
    ]
    assert used(Deadline(seconds=1.25), Table(slow_first), 400) == list(range(30, 40)) and not held
    # Where a byte takes as long as all the work, nobody is known to be first before all are drawn.
    assert used(first, Table(slow_last, 1.0), 400) == list(range(10)) and held == [4, 4, 2]
    with pytest.raises(RuntimeError, match="of 3 bytes; at least 4"):
        used(first, Table(slow_last), 3)


BUSY_S = np.array([1.0, 2.5])


def run(
    rules: Hurried | None,
    rounds: int,
    strategy: FedAvg | FedAU | None = None,
    clients: int = 2,
    evaluation: Evaluation | None = None,
) -> tuple[list[float], list[RoundReport]]:
    """Two clients that step half of the way to 8 and to -4; the second holds three samples."""

    def answer(message: Message) -> list[Message]:
        k = grid.client_index(message.metadata.dst_node_id)
        return [quadratic(message, centre=(8.0, -4.0)[k], examples=(1, 3)[k])]

    grid = ToyGrid(2, answer)
    masks = np.ones((rounds, 2), bool)
    if clients == 1:
        masks[:, 0] = False
    run = loop(strategy or FedAvg(), grid, Masks(masks), evaluation=evaluation)
    run.meter = Table(BUSY_S)  # type: ignore[assignment]
    run.pace = None if rules is None else Pace(rules, Table(BUSY_S))
    pairs: list[tuple[Params, RoundReport]] = list(run.run(model(0.0)))
    return [float(params["x"]) for params, _ in pairs], [report for _, report in pairs]


def test_a_kept_reply_by_hand() -> None:
    """The second client, asked in round 1 at x = 0, sends -2 - 0; it arrives in round 3, at 2.5 s.

    In float64: x = 4, 6, and 6 + (1·1 + w·(-2)) / (1 + w), with w = 3 · (1 + 2)^(-a).
    """
    for discount, weighting, third in (
        (1.0, "examples", 5.5),  # w = 1
        (0.0, "examples", 4.75),  # w = 3
        (0.0, "uniform", 5.5),
        (1.0, "uniform", 6.25),  # w = 1/3
    ):
        rules = Deadline(seconds=1.0, late="keep", discount=discount)
        x, reports = run(rules, 4, FedAvg(weighting=weighting))  # type: ignore[arg-type]
        assert x[:3] == pytest.approx([4.0, 6.0, third], rel=1e-15)
        assert [(r.asked, r.admitted, r.late, r.arrived_late) for r in reports] == [
            (2, [0], 1, 0),
            (1, [0], 0, 0),  # the second is busy, and is not asked
            (1, [0, 1], 0, 1),
            (2, [0], 1, 0),
        ]
        assert [r.simulated_seconds for r in reports] == [1.0, 2.0, 3.0, 4.0]
        assert x[3] == (x[2] + 8) / 2
    x, reports = run(Deadline(seconds=1.0), 4)
    assert x == [4.0, 6.0, 7.0, 7.5]
    assert [(r.asked, r.admitted, r.late) for r in reports] == [(2, [0], 1)] * 4


def test_with_everybody_in_flight_a_round_lasts_until_an_arrival_or_the_deadline() -> None:
    x, reports = run(Deadline(seconds=1.0, late="keep"), 4, clients=1)
    assert [(r.asked, r.admitted) for r in reports] == [(1, []), (0, []), (0, [1]), (1, [])]
    assert [r.simulated_seconds for r in reports] == [1.0, 2.0, 2.5, 3.5]
    assert x == [0.0, 0.0, -2.0, -2.0]


def test_a_clock_that_has_stopped_stays_so_and_nothing_is_kept_by_it() -> None:
    evaluation = Evaluation(central=None, clients=True, every=1)  # takes nobody knows how long
    x, reports = run(Deadline(seconds=1.0), 3, evaluation=evaluation)
    assert [(r.admitted, r.late, r.simulated_seconds) for r in reports] == [([0], 1, None)] * 3
    assert x == [4.0, 6.0, 7.0]
    with pytest.raises(ConfigError, match=r"evaluation\.clients=none, or pace\.late=drop"):
        run(Deadline(seconds=1.0, late="keep"), 3, evaluation=evaluation)


def test_a_client_that_is_late_has_not_taken_part() -> None:
    """FedAU counts the rounds between participations."""
    strategy = FedAU()
    run(Deadline(seconds=1.0), 3, strategy)
    assert strategy.state_dict()["clients"].tolist() == [0]  # type: ignore[union-attr]


def test_a_pace_that_keeps_no_reply_holds_no_state_and_another_one_needs_it() -> None:
    drops, keeps = Pace(Deadline(), Table(BUSY_S)), Pace(Deadline(late="keep"), Table(BUSY_S))
    assert drops.state_dict() == {}
    with pytest.raises(ResumeError, match="was the pace changed"):
        keeps.load_state_dict(drops.state_dict())


def test_over_selection_is_rounded_up_and_130_percent_of_10_are_10() -> None:
    assert [OverSelection().wanted(k) for k in (0, 1, 2, 13, 14, 26)] == [0, 1, 2, 10, 11, 20]
    assert [OverSelection(replies=5).wanted(k) for k in (3, 5, 9)] == [3, 5, 5]
    assert OverSelection(over=0).wanted(7) == 7


def test_who_is_late_must_be_known() -> None:
    class Unknown(Table):
        def busy(self, replies, clients, unheard=0):  # type: ignore[no-untyped-def]
            return None

    replies = admit(Stacked(chunk([0, 1], torch.ones(2, 1))), Deadline(), Unknown(BUSY_S))
    with pytest.raises(ConfigError, match="set pace=patient"):
        list(replies.chunks())
    assert NUM_EXAMPLES not in replies.metrics
