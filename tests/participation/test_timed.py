"""Who is there when: a sine of the day, intervals of a file, and what a run makes of them."""

from itertools import pairwise

import numpy as np
import pytest

from fedsim.config import compose
from fedsim.errors import ConfigError, DataError
from fedsim.participation import timed
from fedsim.participation.base import WithSamples
from fedsim.participation.diurnal import Diurnal
from fedsim.participation.intervals import Intervals
from fedsim.participation.timed import begin
from fedsim.simulation import Simulation
from tests.helpers import whole_and_resumed

ROWS = "client,start,end\n0,0,10\n2,5,20\n0,5,12\n3,30,31\n0,18,20\n"


@pytest.fixture
def intervals(tmp_path, population):
    def bind(text=ROWS, num_clients=5, **fields):
        path = tmp_path / "intervals.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        part = Intervals(path=str(path), **{"clients_per_round": None, **fields})
        return part.bind(population(num_clients))

    return bind


def test_intervals_by_hand(intervals):
    schedule = intervals(at_end="empty")
    there = {t: np.flatnonzero(schedule.there(t)).tolist() for t in (0, 5, 10, 12, 18, 20, 30, 31)}
    assert there == {0: [0], 5: [0, 2], 10: [0, 2], 12: [2], 18: [0, 2], 20: [], 30: [3], 31: []}
    assert schedule.share() == pytest.approx([14 / 31, 0, 15 / 31, 1 / 31, 0])
    schedule.at(19.5)
    assert schedule.select(7).tolist() == [0, 2] and schedule.select(7).dtype == np.int64
    assert [schedule.next_change(t) for t in (0, 5, 20, 30.0)] == [5, 18, 30, None]


def test_a_server_waits_for_the_first_who_can_be_asked(intervals):
    schedule = intervals(at_end="empty")
    assert begin(schedule, 1, 7.0) == 7.0
    assert begin(schedule, 1, 20.0) == 30.0 and schedule.select(1).tolist() == [3]
    assert begin(schedule, 1, 20.0, wait=False) == 20.0 and schedule.select(1).tolist() == []
    assert begin(schedule, 1, 40.0) == 40.0 and schedule.select(1).tolist() == []  # for good
    some = WithSamples(schedule, lambda clients: (clients == 3).astype(int))
    assert some.timed and begin(some, 1, 0.0) == 30.0  # those who hold nothing are not waited for


def test_after_the_end(intervals):
    again = intervals(at_end="repeat")
    for t in (0, 5, 12, 20, 30):
        assert (again.there(t + 3 * 31) == again.there(t)).all()
    assert begin(again, 1, 31 * 1e6 + 20) == 31 * 1e6 + 30
    late = intervals("client,start,end\n1,0.1,0.3\n", at_end="repeat")
    assert begin(late, 1, 0.3) == pytest.approx(0.4)
    for cycle in range(1, 2000):  # multiples of 0.3 are rounded, this way and that
        schedule_begins = begin(late, 1, cycle * 0.3 + 0.25)
        assert late.select(1).tolist() == [1]
        assert schedule_begins == pytest.approx(cycle * 0.3 + 0.25, abs=0.16)
    error = intervals(at_end="error")
    with pytest.raises(ConfigError, match=r"^at_end: 'error', .* end at 31 s .*at_end=repeat"):
        begin(error, 1, 31.0)


def test_of_those_who_are_there_some_are_drawn_by_the_round(intervals):
    schedule = intervals("client,start,end\n" + "".join(f"{k},0,9\n" for k in range(5)))
    assert schedule.select(1).tolist() == [0, 1, 2, 3, 4]
    two = intervals("client,start,end\n" + "".join(f"{k},0,9\n" for k in range(5)))
    two.clients_per_round = 2
    drawn = [tuple(two.select(r).tolist()) for r in range(1, 40)]
    assert {len(clients) for clients in drawn} == {2} and len(set(drawn)) > 6
    assert two.rates() == pytest.approx([0.4] * 5) and schedule.rates() == pytest.approx([1] * 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; expected 'client,start,end'"),
        ("client,start\n", "line 1: the header is 'client,start'"),
        ("client,start,end\n", "holds no intervals"),
        ("client,start,end\n0,1\n", "line 2: 2 cells"),
        ("client,start,end\n5,1,2\n", r"line 2, column 'client': 5 is outside 0\.\.4"),
        ("client,start,end\n-1,1,2\n", "line 2, column 'client': -1 is outside"),
        ("client,start,end\nx,1,2\n", "column 'client': 'x' is not allowed; expected a whole"),
        (f"client,start,end\n{'9' * 999},1,2\n", "column 'client': '9{40}' is not allowed"),
        ("client,start,end\n1,-1,2\n", "column 'start': '-1' is not allowed; expected seconds"),
        ("client,start,end\n1,0,nan\n", "column 'end': 'nan' is not allowed"),
        ("client,start,end\n1,0,1e13\n", "column 'end': '1e13' is not allowed"),
        ("client,start,end\n1,2,2\n", "line 2: the interval ends at 2 s, not after its start, 2"),
        (b"client,start,end\n1,2,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_row_and_column(intervals, text, message):
    with pytest.raises(DataError, match=message) as caught:
        intervals(text)
    assert len(str(caught.value)) < 500


def test_a_missing_path_is_said(population):
    with pytest.raises(ConfigError, match=r"^path: no file of intervals .*participation\.path="):
        Intervals().bind(population(3))


DAY = Diurnal(rate=0.4, swing=1.0, day=96.0, slot=2.0, zones=4, clients_per_round=None)


def test_the_chance_is_a_sine_of_each_clients_own_day(population):
    schedule = DAY.bind(population(40_000))
    assert np.bincount((schedule.zone_N * 4).astype(int)).tolist() == pytest.approx([1e4] * 4, 0.05)
    for slot in (0, 11, 12, 30, 47):
        there_N = schedule.there(slot * 2.0 + 1.3)
        assert (there_N == schedule.there(slot * 2.0)).all()  # for the whole slot
        for zone in range(4):
            chance = 0.4 * (1 + np.sin(2 * np.pi * ((slot * 2 + 1) / 96 + zone / 4)))
            mine = there_N[schedule.zone_N == zone / 4]
            assert mine.mean() == pytest.approx(chance, abs=4 * np.sqrt(0.25 / len(mine)))
    one = Diurnal(rate=0.5, swing=0.0, day=96.0, slot=2.0).bind(population(4))
    assert one.chance(3).tolist() == [0.5] * 4


def test_availability_is_a_function_of_seed_and_time(population):
    forward, mixed = DAY.bind(population(30)), DAY.bind(population(30))
    expected = {t: forward.there(t) for t in range(0, 96, 3)}
    for t in (51, 3, 3, 93, 0):
        assert (mixed.there(t) == expected[t]).all()
    other = DAY.bind(population(30, seed=1))
    assert any((other.there(t) != expected[t]).any() for t in expected)
    shares = np.mean([forward.there(t) for t in np.arange(0, 96 * 60, 2)], axis=0)
    assert shares == pytest.approx(forward.share(), abs=0.05)


def test_nobody_for_ever_is_an_error(population, monkeypatch):
    monkeypatch.setattr(timed, "MOST_CHANGES", 500)
    nobody = WithSamples(DAY.bind(population(3)), lambda clients: np.zeros(len(clients)))
    with pytest.raises(ConfigError, match=r"from 5 to \d+ simulated seconds, nobody was there"):
        begin(nobody, 1, 5.0)
    far = DAY.bind(population(3))
    with pytest.raises(ConfigError, match=r"slot: 2\.0 s is too short for 1e"):
        far.there(1e10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"rate": 0.6}, "rate: 0.6 with swing=1.0 .* allowed: up to 0.5"), ({"slot": 1e6}, "^slot:")],
)
def test_what_makes_no_day_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Diurnal(**fields)


WORDS = ["partition.num_clients=12", "partition=iid", "model=linear", "client.epochs=1",
         "device=cpu", "devices=unequal", "rounds=12"]  # fmt: skip
DAYS = ["participation=diurnal", "participation.day=0.2", "participation.slot=0.02",
        "participation.zones=2", "participation.clients_per_round=3"]  # fmt: skip


def reports(*words):
    simulation = Simulation(compose("quickstart", [*WORDS, *words]))
    return simulation, [r for _, r in simulation.loop.run(simulation.runtime.initial_params())]


@pytest.mark.parametrize("strategy", ["fedavg", "fedasync", "fedbuff", "fedat"])
def test_who_is_asked_is_there_when_the_round_begins(strategy):
    words = {"fedasync": ["concurrency=3"], "fedbuff": ["concurrency=4", "buffer=2"]}
    words["fedat"] = ["tiers=2", "clients_per_tier=2"]
    own = [f"strategy.{word}" for word in words.get(strategy, [])]
    _, told = reports(*DAYS, f"strategy={strategy}", *own)
    twin = Simulation(compose("quickstart", [*WORDS, *DAYS])).schedule
    asked = [np.array(r.footprint.get("train", {}).get("client-index", []), int) for r in told[1:]]
    assert sum(map(len, asked)) > 12
    for (before, now), clients in zip(pairwise(told), asked, strict=True):
        assert now.simulated_seconds >= before.simulated_seconds
        start = begin(twin, now.server_round, before.simulated_seconds, wait=strategy == "fedavg")
        if strategy == "fedavg":
            assert clients.tolist() == twin.select(now.server_round).tolist()
            assert now.simulated_seconds == start + max(now.footprint["train"]["seconds"])
        elif before.server_round:  # an asynchronous server has not waited, while anybody is busy
            assert set(clients) <= set(twin.select(now.server_round))


def test_a_wait_takes_time_and_a_client_that_goes_away_finishes(tmp_path):
    path = tmp_path / "there.csv"
    path.write_text("client,start,end\n4,0,0.0001\n7,100,100.0001\n")
    own = ["participation=intervals", f"participation.path={path}"]
    _, (_, first, second, third) = reports(*own, "rounds=3")
    assert [r.admitted for r in (first, second, third)] == [[4], [7], [7]]
    busy = [r.footprint["train"]["seconds"][0] for r in (first, second, third)]
    assert first.simulated_seconds == busy[0] > 0.0001
    assert second.simulated_seconds == 100 + busy[1]
    # When 7 is done, the file has begun again, and 4 has come and gone.
    assert third.simulated_seconds == pytest.approx(200.0001 + busy[2], rel=1e-12)


def test_an_asynchronous_server_waits_where_nobody_is_busy(tmp_path):
    path = tmp_path / "there.csv"
    path.write_text("client,start,end\n4,50,50.0001\n7,50,50.0001\n")
    own = ["participation=intervals", f"participation.path={path}", "participation.at_end=empty"]
    own += ["strategy=fedasync", "strategy.concurrency=2", "rounds=3"]
    _, (_, *told) = reports(*own)
    assert [len(r.admitted) for r in told] == [2, 0, 0]
    busy = sorted(told[0].footprint["train"]["seconds"])
    assert [r.simulated_seconds for r in told[:2]] == [50 + busy[0], 50 + busy[1]]
    assert told[2].simulated_seconds == 50 + busy[1]


@pytest.mark.parametrize("strategy", ["fedavg", "fedat"])
def test_a_resumed_run_asks_at_the_same_times(strategy, tmp_path):
    own = ["strategy.tiers=2"] if strategy == "fedat" else []
    words = [*WORDS, *DAYS, f"strategy={strategy}", *own, "checkpoint.every=2", "rounds=7"]
    config = compose("quickstart", [*words, f"output.root={tmp_path}"])
    whole, resumed = whole_and_resumed(config, cut_after=5)
    lines = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in run.rounds()]
        for run in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    times = [line["simulated_seconds"] for line in lines[0]]
    assert all(a <= b for a, b in pairwise(times)) and times[-1] > times[1]
    models = [(f.path / "model.safetensors").read_bytes() for f in (whole, resumed)]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["devices=none"], r"the scenario has none; set devices=unequal"),
        (["privacy=user_dp", "privacy.epsilon=8", "privacy.delta=0.001"], "does not account for"),
        (["privacy=local_dp", "privacy.epsilon=8"], "does not account for"),
    ],
)
def test_what_does_not_go_with_it_is_refused(words, match):
    with pytest.raises(ConfigError, match=match):
        Simulation(compose("quickstart", [*WORDS, *DAYS, *words])).check()


def test_a_clock_that_cannot_be_told_ends_the_run(monkeypatch):
    simulation = Simulation(compose("quickstart", [*WORDS, *DAYS]))
    monkeypatch.setattr(simulation.meter, "_flops", lambda *given: None)
    run = simulation.loop.run(simulation.runtime.initial_params())
    next(run), next(run)  # the second one's seconds are unknown
    with pytest.raises(ConfigError, match="cannot be told"):
        next(run)


def test_the_plan_takes_the_share_of_time():
    from fedsim.plan import plan

    words = [*WORDS, *DAYS[:4], "participation.clients_per_round=null"]
    assert plan(Simulation(compose("quickstart", words))).clients_per_round == 6


def test_while_late_replies_are_to_come_a_server_does_not_wait_for_others(tmp_path):
    """All are there for a moment, and again after 100 s; the two that were late arrive before."""
    path = tmp_path / "there.csv"
    path.write_text("client,start,end\n" + "".join(f"{k},0,1e-4\n{k},100,101\n" for k in range(3)))
    own = ["participation=intervals", f"participation.path={path}", "partition.num_clients=3"]
    own += ["pace=over_selection", "pace.replies=1", "pace.late=keep", "rounds=4"]
    _, (_, *told) = reports(*own)
    assert [r.asked for r in told] == [3, 0, 0, 3]
    assert [len(r.admitted) for r in told[:3]] == [1, 1, 1]
    busy = sorted(told[0].footprint["train"]["seconds"])
    assert [r.simulated_seconds for r in told[:3]] == busy
    assert told[3].simulated_seconds > 100
