"""Our strategies in a plain Flower `ServerApp`, with client apps that know nothing of fedsim."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim.admission import ClientError
from fedsim.engines.flwr_compat import client_error, make_run
from fedsim.errors import TooFewClientsError
from fedsim.records import TensorArray, to_record, to_tensors
from strategies.average_all import AverageAll
from strategies.fedau import FedAU
from strategies.fedavg import FedAvg
from tests.strategies._toy import Masks, ToyGrid, equal, federate, finish, loop, model, quadratic

IDS = [2**63 + 5, 17, 2**64 - 1]
"""Node ids as Flower draws them: any 64 bits."""

SORTED = sorted(IDS)
CENTRE = {17: 1.0, 2**63 + 5: 4.0, 2**64 - 1: 10.0}
EXAMPLES = {17: 10, 2**63 + 5: 20, 2**64 - 1: 70}


def over_the_wire(thing):
    """Serialise and read back, as Flower's transport does; only its own types survive."""
    children = {key: over_the_wire(child) for key, child in (thing.children or {}).items()}
    return type(thing).inflate(thing.deflate(), children)


def shuffled(things, seed):
    return [things[k] for k in np.random.default_rng(seed).permutation(len(things))]


class WireGrid(Grid):
    """Some nodes with 64-bit ids behind a wire; has what Flower's `Grid` asks for, and no more.

    Args:
        connected: Which nodes are there in each round.
        app: What they run.
    """

    def __init__(self, connected, app):
        self.connected, self.app, self.round = connected, app, 1
        self._run = make_run()
        self.broken = set()
        self.asked = []

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    pull_messages = create_message

    def get_node_ids(self):
        return shuffled(self.connected[self.round - 1], self.round)

    def push_messages(self, messages):
        """Like Flower's own: note an id in each message, then go through them once more."""
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
        pushed = [message for message in messages if message.metadata.message_id]
        assert len(pushed) == len(messages)
        return pushed

    def send_and_receive(self, messages, *, timeout=None):
        replies = [self._one(over_the_wire(m)) for m in self.push_messages(messages)]
        if replies:  # a training exchange; evaluation asks nobody
            self.asked.append(sorted(reply.metadata.src_node_id for reply in replies))
            self.round = min(self.round + 1, len(self.connected))
        return shuffled(replies, self.round)

    def _one(self, message):
        node = message.metadata.dst_node_id
        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        if node in self.broken:
            return over_the_wire(client_error(message, "no data here"))
        return over_the_wire(self.app(message, context))


def plain_client_app():
    app = ClientApp()

    @app.train()
    def train(message, context):
        centre = CENTRE[context.node_id]
        arrays = {
            name: array.numpy() + 0.5 * (centre - array.numpy())
            for name, array in message.content["arrays"].items()
        }
        record = ArrayRecord()
        for name, array in arrays.items():
            record[name] = Array(array)
        metrics = MetricRecord({"num-examples": EXAMPLES[context.node_id], "loss": centre})
        # A name of its own for the record: Flower's strategies do not ask for a particular one.
        return Message(RecordDict({"model": record, "scores": metrics}), reply_to=message)

    return app


def serve(strategy, connected, rounds, broken=(), start=(0.0, 2.0)):
    """Run the strategy as a user of Flower would; return its result and the grid."""
    grid = WireGrid(connected, plain_client_app())
    grid.broken = set(broken)
    app, results = ServerApp(), []

    @app.main()
    def main(grid, context):
        initial = to_record(model(*start), zero_copy=False)
        results.append(strategy.start(grid, initial, num_rounds=rounds))

    app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}))
    return results[0], grid


def same_in_process(strategy, masks, rounds, start=(0.0, 2.0)):
    """Our own round loop, client k being the node with the k-th smallest id."""

    def answer(message):
        node = SORTED[grid.client_index(message.metadata.dst_node_id)]
        return [quadratic(message, CENTRE[node], examples=EXAMPLES[node])]

    grid = ToyGrid(len(SORTED), answer)
    params, _ = finish(loop(strategy, grid, Masks(masks), rounds=rounds), model(*start))
    return params


def test_fedavg_by_hand():
    result, grid = serve(FedAvg(), [IDS], rounds=1)
    # y_k = (x + b_k) / 2; weights .1, .2, .7; mean of b = 0.1 + 0.8 + 7 = 7.9
    assert to_tensors(result.arrays)["x"].tolist() == pytest.approx([3.95, 4.95], rel=1e-12)
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(7.9)
    assert result.train_metrics_clientapp[1]["num-examples"] == 100
    assert grid.asked == [SORTED]


@pytest.mark.parametrize("make", [FedAvg, AverageAll, lambda: FedAU(cutoff=3)])
def test_result_is_that_of_our_own_round_loop(make):
    result, _ = serve(make(), [IDS] * 8, rounds=8)
    expected = same_in_process(make(), np.ones((8, 3)), rounds=8)
    assert equal(to_tensors(result.arrays), expected)


def test_fedau_where_nodes_come_and_go():
    """Client indices follow the nodes, who are counted in N once they have been seen."""
    first, second, third = SORTED
    connected = [SORTED, [first], [first], [second, first, third], [third]]
    strategy = FedAU()
    result, grid = serve(strategy, connected, rounds=5)
    assert grid.asked == [sorted(nodes) for nodes in connected]
    masks = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]])
    assert equal(to_tensors(result.arrays), same_in_process(FedAU(), masks, rounds=5))
    assert strategy.weights(6).tolist() == [1.0, 2.0, 5 / 3]


def test_a_node_that_joins_late_gets_the_next_index():
    strategy = FedAU()
    late = SORTED[0]  # the smallest id, and still the last index
    serve(strategy, [SORTED[1:], SORTED[1:], SORTED], rounds=3)
    assert strategy.weights(4).tolist() == [1.0, 1.0, 3.0]
    assert late == 17


def test_a_round_without_nodes_leaves_the_model():
    strategy = FedAU()
    serve(strategy, [IDS], rounds=1)
    grid = WireGrid([[]], plain_client_app())
    result = strategy.start(grid, to_record(model(0.0, 2.0), zero_copy=False), num_rounds=1)
    assert to_tensors(result.arrays)["x"].tolist() == [0.0, 2.0]
    assert grid.asked == []


def test_no_node_ever_is_an_error_in_time(monkeypatch):
    monkeypatch.setattr("fedsim.strategy.CONNECT_S", 0.1)
    with pytest.raises(TooFewClientsError, match=r"0 nodes .* within 0.1 s, but 1 are needed"):
        serve(FedAU(), [[]], rounds=2)
    assert TooFewClientsError.exit_code == 4


def test_the_first_round_waits_for_nodes(monkeypatch):
    """Flower starts a `ServerApp` before any node has connected."""
    monkeypatch.setattr("fedsim.strategy.CONNECT_S", 1.0)
    polls = []

    class SlowGrid(WireGrid):
        def get_node_ids(self):
            polls.append(1)
            return super().get_node_ids() if len(polls) > 3 else []

    grid = SlowGrid([IDS], plain_client_app())
    FedAvg().start(grid, to_record(model(0.0), zero_copy=False), num_rounds=1)
    assert grid.asked == [SORTED]


def test_a_broken_node_is_left_out():
    result, _ = serve(FedAvg(weighting="uniform"), [IDS], rounds=1, broken=[17])
    assert to_tensors(result.arrays)["x"].tolist() == pytest.approx([3.5, 4.5], rel=1e-12)


def test_broken_nodes_only_end_the_run():
    """Flower's own strategies finish with an empty result instead."""
    with pytest.raises(ClientError, match="no data here"):
        serve(FedAvg(), [IDS], rounds=3, broken=IDS)


def test_tensor_arrays_do_not_cross_a_wire():
    """The control of the tests above: zero-copy records would have been noticed."""
    record = to_record(model(1.0), zero_copy=True)
    assert isinstance(record["x"], TensorArray)
    with pytest.raises(TypeError):
        over_the_wire(record)


def test_a_simulation_without_its_clients_says_so(monkeypatch):
    monkeypatch.setattr("fedsim.strategy.CONNECT_S", 0.1)
    strategy = federate(FedAvg(), Masks(np.ones((3, 5))))
    with pytest.raises(TooFewClientsError, match=r"3 nodes have connected .*, but 5 are needed"):
        serve(strategy, [IDS], rounds=1)


def test_a_simulated_schedule_addresses_real_nodes():
    masks = np.array([[1, 0, 1], [0, 1, 0]])
    strategy = federate(FedAvg(), Masks(masks))
    result, grid = serve(strategy, [IDS, IDS], rounds=2)
    assert grid.asked == [[SORTED[0], SORTED[2]], [SORTED[1]]]
    expected = same_in_process(FedAvg(), masks, rounds=2)
    assert equal(to_tensors(result.arrays), expected)
