"""What attackers send, by hand on small tensors, as stacked chunks and as messages."""

import numpy as np
import pytest
import torch
from flwr.app import Array, RecordDict

from fedsim.attack.inner_product import InnerProduct
from fedsim.attack.little_is_enough import LittleIsEnough, z_max
from fedsim.attack.nan import NaN
from fedsim.attack.scaled import Scaled
from fedsim.attack.sign_flip import SignFlip
from fedsim.records import NUM_EXAMPLES, Chunk, Replies, TensorArray, to_record, to_tensors
from tests.helpers import classification
from tests.strategies._toy import Stacked, ToyGrid, failing, reply

X = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "seen": torch.tensor(5)}
UPDATES = torch.tensor([[1, 0], [0, 1], [3, 4], [-1, 2]], dtype=torch.float64)
LIARS = (1, 2)
"""Client 1 has the update (0, 1) and client 2 (3, 4): mean (1.5, 2.5), deviation (1.5, 1.5)."""

SENT = {
    "sign flip": (SignFlip(clients=LIARS, scale=2), [[0, -2], [-6, -8]]),
    "scaled": (Scaled(clients=LIARS, factor=10), [[0, 10], [30, 40]]),
    "nan": (NaN(clients=LIARS), [[np.nan, np.nan], [np.nan, np.nan]]),
    "little": (LittleIsEnough(clients=LIARS, z=2), [[4.5, 5.5], [4.5, 5.5]]),
    "little below": (LittleIsEnough(clients=LIARS, z=-1), [[0, 1], [0, 1]]),
    "inner product": (InnerProduct(clients=LIARS, epsilon=2), [[-3, -5], [-3, -5]]),
}


def expected(name):
    forged = UPDATES.clone()
    forged[list(LIARS)] = torch.tensor(SENT[name][1], dtype=torch.float64)
    return forged


def tamper(attack, replies, index=int):
    bound = attack.bind(num_clients=4, seed=0, dataset=classification(), client_index=index)
    return bound.tamper(replies, X)


def chunk(*clients):
    rows = list(clients)
    return Chunk(
        client_index=np.array(rows),
        arrays={"w": X["w"] + UPDATES[rows], "seen": torch.tensor(rows)},
        client_arrays={"extra": UPDATES[rows]},
        metrics={NUM_EXAMPLES: np.array(rows) + 1.0},
    )


@pytest.mark.parametrize("split", [((0, 1, 2, 3),), ((3, 2), (1, 0)), ((0,), (1,), (2,), (3,))])
@pytest.mark.parametrize("name", SENT)
def test_chunks(name, split):
    given = [chunk(*clients) for clients in split]
    before = [c.arrays["w"].clone() for c in given]
    replies = tamper(SENT[name][0], Stacked(*given))
    assert replies.stacked
    rows, extra, examples, seen = {}, {}, {}, {}
    for c in replies.chunks():
        for row, client in enumerate(c.client_index.tolist()):
            rows[client], extra[client] = c.arrays["w"][row], c.client_arrays["extra"][row]
            examples[client], seen[client] = c.num_examples[row], c.arrays["seen"][row].item()
    result = torch.stack([rows[k] for k in range(4)]) - X["w"]
    assert torch.allclose(result, expected(name), rtol=1e-15, equal_nan=True)
    for k in (0, 3):
        assert torch.equal(rows[k], X["w"] + UPDATES[k]), "honest rows to the bit"
    assert torch.equal(torch.stack([extra[k] for k in range(4)]), UPDATES)
    assert [examples[k] for k in range(4)] == [1, 2, 3, 4]
    assert [seen[k] for k in range(4)] == [0, 1, 2, 3], "integers are sent as they are"
    for c, w in zip(given, before, strict=True):
        assert torch.equal(c.arrays["w"], w), "the engine's memory is its own"


class Ours(Replies):
    """Replies of an engine that moves messages."""

    def __init__(self, messages):
        self.messages = messages

    def __iter__(self):
        return iter(self.messages)

    def chunks(self):
        raise TypeError


@pytest.mark.parametrize("zero_copy", [True, False])
@pytest.mark.parametrize("kind", [Ours, list])
@pytest.mark.parametrize("name", SENT)
def test_messages(name, kind, zero_copy):
    """Clients answer in any order, and client 3 has failed."""

    def answer(message):
        k = grid.client_index(message.metadata.dst_node_id)
        if k == 3:
            return [failing(message)]
        params = {"w": X["w"] + UPDATES[k], "seen": torch.tensor(k)}
        return [reply(message, to_record(params, zero_copy=zero_copy), examples=k + 1)]

    grid = ToyGrid(4, answer)
    sent = [
        grid.create_message(reply_content(), "train", int(grid.node_ids(np.array(k))), "1")
        for k in (2, 0, 3, 1)
    ]
    replies = tamper(SENT[name][0], kind(grid.execute(sent)), grid.client_index)
    assert isinstance(replies, Replies) == (kind is Ours)
    found = {}
    for message in replies:
        k = grid.client_index(message.metadata.src_node_id)
        if message.has_error():
            assert k == 3
            continue
        record = message.content.array_records["arrays"]
        assert {type(array) for array in record.values()} == {TensorArray if zero_copy else Array}
        assert message.content.metric_records["metrics"][NUM_EXAMPLES] == k + 1
        assert record["seen"].numpy() == k
        found[k] = to_tensors(record)["w"] - X["w"]
    result = torch.stack([found[k] for k in range(3)])
    assert torch.allclose(result, expected(name)[:3], rtol=1e-15, equal_nan=True)


def test_the_networks_order_does_not_reach_the_sums():
    """Colluders' mean is that of the clients in their order, to the bit."""
    rng = torch.Generator().manual_seed(0)
    updates = 1e3 * torch.randn(7, 2, generator=rng, dtype=torch.float64)
    attack, found = InnerProduct(clients=tuple(range(1, 7))), []

    def answer(message):
        k = grid.client_index(message.metadata.dst_node_id)
        return [reply(message, {"w": X["w"] + updates[k], "seen": X["seen"]})]

    grid = ToyGrid(7, answer)
    ids = grid.node_ids(np.arange(7)).tolist()
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(7)
        sent = [grid.create_message(reply_content(), "train", ids[k], "1") for k in order]
        bound = attack.bind(
            num_clients=7, seed=0, dataset=classification(), client_index=grid.client_index
        )
        for message in bound.tamper(grid.execute(sent), X):
            if grid.client_index(message.metadata.src_node_id) == 1:
                found.append(to_tensors(message.content.array_records["arrays"])["w"])
    assert len(found) == 8
    assert all(torch.equal(w, found[0]) for w in found)


def reply_content():
    return RecordDict({"arrays": to_record(X, zero_copy=False)})


@pytest.mark.parametrize(
    ("n", "malicious", "z"),
    [
        (50, 10, 0.2533471),  # s = 16: Φ(z) = 24 / 40
        (50, 12, 0.3360383),  # s = 14: 24 / 38
        (50, 24, 1.4260769),  # s = 2: 24 / 26
        (10, 1, 0.0),  # s = 5: 4 of 9 is below one half
        (5, 4, 0.0),  # one honest client
        (3, 3, 0.0),
    ],
)
def test_z_of_the_paper(n, malicious, z):
    """s = ⌊n/2 + 1⌋ − M, Φ(z) = (n − M − s) / (n − M)."""
    assert z_max(n, malicious) == pytest.approx(z, abs=1e-6)


def test_z_counts_all_replies_of_the_round():
    """Of four replies two are forged: s = 1, Φ(z) = 1/2, so z = 0 and both send the mean."""
    (all_of_them,) = tamper(
        LittleIsEnough(clients=LIARS), Stacked(chunk(0, 1), chunk(2, 3))
    ).chunks()
    forged = all_of_them.arrays["w"] - X["w"]
    assert torch.allclose(forged[1], UPDATES[[1, 2]].mean(0))
    assert z_max(4, 2) == 0


def test_a_round_without_attackers_passes():
    honest = chunk(0, 3)
    (passed,) = tamper(SignFlip(clients=LIARS), Stacked(honest)).chunks()
    assert passed is honest
    assert list(tamper(LittleIsEnough(clients=LIARS), Stacked()).chunks()) == []
