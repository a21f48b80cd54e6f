"""What a round takes of its clients: bytes as encoded, operations by hand, seconds by hand."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message

from fedsim.client.sequential import evaluate_client, train_client
from fedsim.config import Config, compose
from fedsim.devices.base import Fleet
from fedsim.devices.drawn import Drawn
from fedsim.effort import _operations, local_effort
from fedsim.engines.flwr_compat import encoded_bytes
from fedsim.engines.in_process import InProcessGrid
from fedsim.network import Network
from fedsim.rounds import RoundReport
from fedsim.simulation import Simulation
from fedsim.topology.star import Star
from fedsim.topology.traffic import ThroughServer

WORDS = ["device=cpu", "rounds=1", "evaluation.central=false"]
SEMIPFL = [*WORDS, "data.subjects=7", "data.users=3", "data.windows=60", "strategy.base_epochs=1",
           "strategy.mix_epochs=2", "client.epochs=2", "evaluation.every=1"]  # fmt: skip


def one_round(scenario: str, *words: str) -> tuple[Simulation, RoundReport]:
    simulation = Simulation(compose(scenario, list(words)))
    reports = [r for _, r in simulation.loop.run(simulation.runtime.initial_params())]
    return simulation, reports[-1]


@pytest.fixture(scope="module")
def semipfl() -> tuple[Simulation, RoundReport]:
    return one_round("semipfl_wearable", *SEMIPFL, "devices=equal")


def test_seconds_by_hand() -> None:
    fleet = Fleet(
        flops_N=np.array([1.0, 100.0, 200.0]),
        down_N=np.array([1.0, 10.0, 50.0]),
        up_N=np.array([1.0, 5.0, 4.0]),
    )
    clients, down, flops, up = np.array([1, 2]), *np.array([[30, 100], [700, 100], [40, 6]])
    # 30/10 + 700/100 + 40/5 and 100/50 + 100/200 + 6/4
    star = Network(Star(), 3, lambda: Star().graph(3))
    way = star.passage(ThroughServer(), fleet, clients, down, up)
    assert (way.before_K + flops / fleet.flops_N[clients] + way.after_K).tolist() == [18.0, 4.0]


def test_devices_of_no_spread_are_alike_and_others_are_log_normal() -> None:
    alike = Drawn(flops=3.0, down=2.0, up=1.0).fleet(4, seed=0)
    assert [alike.flops_N.tolist(), alike.down_N.tolist(), alike.up_N.tolist()] == [
        [3.0] * 4, [2.0] * 4, [1.0] * 4
    ]  # fmt: skip
    drawn = Drawn(flops=3.0, spread=0.5, link_spread=0.2).fleet(4000, seed=0)
    logs = np.log(drawn.flops_N / 3.0)
    assert abs(logs.mean()) < 4 * 0.5 / 63 and abs(logs.std() - 0.5) < 0.03
    assert np.allclose(drawn.up_N / drawn.down_N, 1e6 / 2.5e6)  # one link, both ways
    assert abs(np.corrcoef(logs, np.log(drawn.up_N))[0, 1]) < 0.07


def test_bytes_are_those_of_every_message_as_it_is_encoded(
    semipfl: tuple[Simulation, RoundReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SemiPFL sends each client a model of its own, and base models to evaluate with."""
    _, report = semipfl  # on the cohort engine
    seen: dict[str, dict[int, tuple[int, int]]] = {"train": {}, "evaluate": {}}
    plain = InProcessGrid.run_one

    def weighed(self: InProcessGrid, message: Message) -> Message:
        reply = plain(self, message)
        sizes = (encoded_bytes(message.content), encoded_bytes(reply.content))
        client = self.client_index(message.metadata.dst_node_id)
        seen[message.metadata.message_type][client] = sizes
        return reply

    monkeypatch.setattr(InProcessGrid, "run_one", weighed)
    wire = ["engine=in_process", "engine.wire_check=true"]
    _, again = one_round("semipfl_wearable", *SEMIPFL, "devices=equal", *wire)
    assert again.footprint == report.footprint
    for exchange, sizes in seen.items():
        columns = report.footprint[exchange]
        assert columns["client-index"] == [0, 1, 2]
        assert columns["bytes-down"] == [sizes[k][0] for k in range(3)]
        assert columns["bytes-up"] == [sizes[k][1] for k in range(3)]
    model = 4 * (90 * 64 + 64 * 32 + 32 * 16) * 2  # the weights of an autoencoder, there and back
    assert min(report.footprint["train"]["bytes-up"]) > model


def test_an_index_of_more_digits_takes_more_bytes() -> None:
    short = ["participation=full", "client.epochs=null", "client.steps=1", "model.hidden=[2]"]
    _, report = one_round("quickstart", *WORDS, *short, "devices=equal")
    down = report.footprint["train"]["bytes-down"]
    # A signed whole number up to 63 takes one byte of Protocol Buffers, up to 8191 two.
    assert [down[k] - down[0] for k in (63, 64, 99)] == [0, 1, 1]


def test_operations_of_an_autoencoder_by_hand(semipfl: tuple[Simulation, RoundReport]) -> None:
    simulation, report = semipfl
    weights = [90 * 64, 64 * 32, 32 * 16, 16 * 32, 32 * 64, 64 * 90]
    # Forward, the weights' gradients, and the inputs' of all layers but the first.
    each = 2 * (3 * sum(weights) - weights[0])
    counts = [len(simulation.runtime.samples(k)) for k in range(3)]
    assert report.footprint["train"]["flops"] == [2 * n * each for n in counts]
    down, up = (report.footprint["train"][c] for c in ("bytes-down", "bytes-up"))
    seconds = [
        d / 2.5e6 + 2 * n * each / 1e9 + u / 1e6 for d, n, u in zip(down, counts, up, strict=True)
    ]
    assert report.footprint["train"]["seconds"] == pytest.approx(seconds, rel=1e-12)
    params = simulation.runtime.initial_params()
    own = {n: t for n, t in params.items() if not n.startswith("head.")}
    own |= {f"base/{n}": t.expand(4, *t.shape) for n, t in params.items() if "head." in n}
    for k, told in enumerate(report.footprint["evaluate"]["flops"]):

        def scored(k: int = k) -> object:
            return evaluate_client(
                simulation.runtime, client=k, server_round=1, params={}, client_arrays=own
            )

        assert _operations(scored) == told > 0


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=fedprox", "client.epochs=null", "client.steps=3"],
        ["strategy=scaffold_full_gradient", "client.epochs=null", "client.steps=3"],
        ["strategy=moon"],
        ["strategy=ditto"],
        ["strategy=fedrep"],
    ],
    ids=lambda words: words[0],
)
def test_what_two_steps_tell_is_what_the_whole_work_takes(words: list[str]) -> None:
    small = ["partition.num_clients=9", "participation.clients_per_round=2", "model.hidden=[8]",
             "client.batch_size=90", "client.epochs=2", "evaluation.clients=none"]  # fmt: skip
    simulation = Simulation(compose("quickstart", [*WORDS, *small, *words]))
    runtime, strategy = simulation.runtime, simulation.strategy
    params = runtime.initial_params()
    simulation.loop.train(1, params)
    sent = strategy._sent
    own = sent.client_arrays(slice(0, 1))
    own = own(sent.client_index[:1]) if callable(own) else own
    given = {
        "server_round": 1,
        "params": params,
        "client_arrays": {name: rows[0] for name, rows in own.items()},
        "told": {},
    }
    client = int(sent.client_index[0])
    effort = local_effort(runtime, client=client, **given)
    for other in (client, int(sent.client_index[1])):
        n = np.array([len(runtime.samples(other))])
        whole = _operations(lambda other=other: train_client(runtime, client=other, **given))
        assert effort.of(runtime.work.visits(n), n)[0] == pytest.approx(whole, rel=1e-12)
    plain = 2 * (64 * 8 + 8 * 10) * 2 + 2 * 8 * 10
    if words == ["strategy=fedavg"]:
        assert (effort.per_visit, effort.per_sample) == (plain, 0)
    elif "scaffold" in words[0]:
        assert (effort.per_visit, effort.per_sample) == (plain, plain)


def test_a_mechanism_that_hides_sizes_hides_operations() -> None:
    words = ["privacy=dp_sgd", "privacy.sample_rate=0.2", "privacy.delta=1e-5", "devices=equal",
             "partition.num_clients=3", "participation=full"]  # fmt: skip
    _, report = one_round("quickstart", *WORDS, *words)
    assert set(report.footprint["train"]) == {"client-index", "bytes-down", "bytes-up"}
    assert report.simulated_seconds is None


def test_without_a_profile_there_is_no_footprint_and_the_hash_is_as_it_was() -> None:
    config = compose("quickstart", WORDS)
    before = Config(config.scenario, config.overrides, {**config.values})
    del before.values["devices"]  # a run folder of before there were any
    assert Config.from_yaml(before.to_yaml()).values == config.values
    assert before.hash == config.hash != compose("quickstart", [*WORDS, "devices=equal"]).hash
    _, report = one_round("quickstart", *WORDS)
    assert report.footprint == {}
    assert report.simulated_seconds is None
