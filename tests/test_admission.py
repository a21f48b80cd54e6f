"""Every kind of bad reply is rejected, counted by reason, and never ends the run."""

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedsim.admission import MAX_REASON, Admission, AdmittedReplies, ClientError
from fedsim.errors import ConfigError
from fedsim.records import NUM_EXAMPLES, Chunk, Instructions, stack, to_record, to_tensors
from tests.faults._bad import BAD, CASES, Bomb, from_node, poisoned, with_x
from tests.strategies._toy import Stacked, failing, reply

CLIENTS = 10
PARAMS = {"x": torch.tensor([1.0, 2.0])}
BAD_ONE = 3


def instructions(zero_copy=False, clients=CLIENTS):
    index = np.arange(clients)
    return Instructions(
        message_type="train",
        server_round=2,
        client_index=index,
        node_ids=index.astype(np.uint64) + np.uint64(2**63),
        arrays=to_record(PARAMS, zero_copy=zero_copy),
        config={},
        zero_copy=zero_copy,
    )


def honest(message):
    client = message.content["config"]["client-index"]
    return reply(message, {"x": torch.tensor([1.0, 2.0]) + client}, examples=1 + client)


def exchange(answer, *, zero_copy=False, rules=None, expected=PARAMS, extra=None):
    """One round in which client 3 answers with `answer` and the others are honest."""
    sent = instructions(zero_copy)
    replies = []
    for client, message in enumerate(sent):
        replies += answer(message) if client == BAD_ONE else [honest(message)]
    return (rules or Admission()).admit(sent, replies, expected, extra)


@pytest.mark.parametrize("draw", ["chunks", "messages"])
@pytest.mark.parametrize(("reason", "fault"), CASES)
def test_one_bad_reply_of_ten(reason, fault, draw):
    admitted = exchange(BAD[reason][fault])
    if draw == "chunks":
        whole = stack(admitted)
        clients = whole.client_index.tolist()
        assert torch.isfinite(whole.arrays["x"]).all()
    else:
        messages = list(admitted)
        clients = admitted.admitted
        assert len(messages) == len(clients)
        assert all(np.isfinite(m.content["arrays"]["x"].numpy()).all() for m in messages)
    rest = [k for k in range(CLIENTS) if k != BAD_ONE or reason == "duplicate"]
    assert clients == admitted.admitted == rest
    assert dict(admitted.rejected) == {reason: 1}
    assert len(admitted.details) == 1
    assert f"({reason})" in admitted.details[0]
    assert admitted.asked == CLIENTS


def test_details_name_the_client():
    admitted = exchange(BAD["weight"]["negative"])
    list(admitted.chunks())
    assert admitted.details == [
        "reply of client 3 rejected (weight): 'num-examples' is -80.0; allowed: (0, 10000000]"
    ]
    admitted = exchange(from_node(77))
    list(admitted.chunks())
    assert admitted.details == ["reply of node 77 rejected (unknown): was not asked"]


def test_no_pickle_is_ever_loaded():
    Bomb.exploded = 0
    list(exchange(BAD["content"]["objects"]).chunks())
    list(exchange(BAD["content"]["objects"]))
    assert Bomb.exploded == 0


def test_zero_copy_replies_are_checked_too():
    def answer(message):
        tensor = torch.tensor([1.0, float("nan")])
        return [reply(message, to_record({"x": tensor}, zero_copy=True))]

    admitted = exchange(answer, zero_copy=True)
    list(admitted.chunks())
    assert dict(admitted.rejected) == {"non-finite": 1}


def test_all_kinds_at_once_are_counted_apart():
    """One client for each kind of fault, all in one round."""
    sent = instructions(clients=len(CASES) + 1)
    replies = [honest(sent[len(CASES)])]
    for message, (reason, fault) in zip(sent, CASES, strict=False):
        replies += BAD[reason][fault](message)
    admitted = Admission().admit(sent, replies, PARAMS)
    whole = stack(admitted)
    expected = {reason: len(faults) for reason, faults in BAD.items()}
    assert dict(admitted.rejected) == expected
    duplicates = [k for k, (reason, _) in enumerate(CASES) if reason == "duplicate"]
    assert whole.client_index.tolist() == [*duplicates, len(CASES)]
    assert len(admitted.details) == 5  # the log is told of the first few


@pytest.mark.parametrize("draw", [list, stack])
def test_who_has_not_answered_in_time_is_late(draw):
    """A bad answer, an error among them, is not late; an answer to another round is no answer."""
    silent = exchange(lambda message: [])
    assert silent.late == 0, "nobody is late before the exchange has ended"
    draw(silent)
    assert (silent.late, dict(silent.rejected)) == (1, {})
    for reason, faults in BAD.items():
        faulty = exchange(next(iter(faults.values())))
        draw(faulty)
        expected = 1 if reason in ("stale", "unknown") else 0
        assert faulty.late == expected, reason


def test_a_second_try_after_a_bad_reply_is_welcome():
    admitted = exchange(lambda m: [*poisoned(np.nan)(m), reply(m)])
    assert len(stack(admitted)) == 10
    assert dict(admitted.rejected) == {"non-finite": 1}


def test_replies_of_the_network_are_sorted():
    sent = instructions()
    replies = [honest(message) for message in sent]
    order = [7, 2, 9, 0, 1, 8, 3, 6, 5, 4]
    admitted = Admission().admit(sent, [replies[k] for k in order], PARAMS)
    assert [int(k) for chunk in admitted.chunks() for k in chunk.client_index] == list(range(10))
    admitted = Admission().admit(sent, [replies[k] for k in order], PARAMS)
    assert [m.metadata.src_node_id - 2**63 for m in admitted] == list(range(10))


def test_messages_of_others_have_no_round_and_are_numbered_by_node():
    """Flower's own strategies set no group id."""
    nodes = [2**64 - 1, 5, 77]
    content = RecordDict({"arrays": to_record(PARAMS, zero_copy=False)})
    sent = [Message(content, node, "train") for node in nodes]
    admitted = Admission().admit(sent, [reply(m) for m in sent], PARAMS)
    assert [m.metadata.src_node_id for m in admitted] == sorted(nodes)
    assert admitted.admitted == [0, 1, 2]
    known = Admission().admit(
        sent, [reply(m) for m in sent], PARAMS, client_index={5: 50, 77: 7, 2**64 - 1: 1}.get
    )
    list(known)
    assert known.admitted == [1, 7, 50]


# --- replies that Flower's strategies could not average ---------------------------------------


@pytest.mark.parametrize(
    "metrics",
    [
        {NUM_EXAMPLES: 1},
        {NUM_EXAMPLES: 1, "train-loss": 1.0, "more": 1.0},
        {NUM_EXAMPLES: 1, "train-loss": [1.0, 2.0]},
        {NUM_EXAMPLES: 1, "other": 1.0},
    ],
)
def test_a_reply_of_another_form_is_kept_from_flower_s_strategies(metrics):
    admitted = exchange(lambda m: [reply(m, metrics=MetricRecord(metrics))])
    assert len(list(admitted)) == 9
    assert dict(admitted.rejected) == {"content": 1}
    assert set(admitted.metrics) == {NUM_EXAMPLES, "train-loss"}


def test_ours_do_not_mind_other_metrics():
    admitted = exchange(lambda m: [reply(m, metrics=MetricRecord({NUM_EXAMPLES: 1}))])
    assert len(stack(admitted)) == 10
    assert admitted.mean_metrics() == {NUM_EXAMPLES: 52.0}  # 1..10 but 1 for 4
    assert set(admitted.per_client()) == {"client-index", NUM_EXAMPLES}


def test_the_first_reply_does_not_set_the_form():
    sent = instructions()
    odd = reply(sent[0], metrics=MetricRecord({NUM_EXAMPLES: 1, "trap": 1.0}))
    admitted = Admission().admit(sent, [odd, *(honest(m) for m in sent[1:])], PARAMS)
    assert [m.metadata.src_node_id - 2**63 for m in admitted] == list(range(1, 10))


# --- metrics ---------------------------------------------------------------------------------


def test_mean_metrics_by_hand():
    sent = instructions(clients=2)
    replies = [
        reply(sent[0], metrics={"loss": 1.0}, examples=1),
        reply(sent[1], metrics={"loss": 5.0}, examples=3),
    ]
    admitted = Admission().admit(sent, replies, PARAMS)
    list(admitted.chunks())
    means = {"loss": 4.0, "train-loss": 1.0, NUM_EXAMPLES: 4.0}
    assert admitted.mean_metrics() == means
    assert admitted.per_client() == {
        "client-index": [0.0, 1.0],
        "loss": [1.0, 5.0],
        "train-loss": [1.0, 1.0],
        NUM_EXAMPLES: [1.0, 3.0],
    }


def test_nothing_has_no_metrics():
    admitted = AdmittedReplies.nothing()
    assert list(admitted) == list(admitted.chunks()) == []
    assert (admitted.asked, admitted.mean_metrics(), admitted.per_client()) == (0, {}, {})


def test_evaluation_needs_no_arrays_and_forgives_clients_without_samples():
    sent = instructions(clients=3)
    answers = [MetricRecord({NUM_EXAMPLES: k, "loss": 1.0 * k}) for k in range(3)]
    answers[0] = MetricRecord({NUM_EXAMPLES: 0.0})
    replies = [
        Message(RecordDict({"metrics": metrics}), reply_to=message)
        for metrics, message in zip(answers, sent, strict=True)
    ]
    for rules in (Admission(), Admission(on_failure="stop")):
        admitted = rules.admit(sent, replies, None)
        list(admitted.chunks())
        assert admitted.rejected == {}
        assert admitted.per_client()["client-index"] == [1.0, 2.0]
        assert admitted.mean_metrics() == {"loss": pytest.approx(5 / 3), NUM_EXAMPLES: 3.0}


# --- client arrays ---------------------------------------------------------------------------


def uploading(record):
    def answer(message):
        good = honest(message)
        if record is not None:
            good.content["client-arrays"] = to_record(record, zero_copy=False)
        return [good]

    return answer


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"c": torch.zeros(3)}, None),
        (None, "content"),
        ({}, "content"),
        ({"c": torch.zeros(2)}, "content"),
        ({"c": torch.zeros(3), "d": torch.zeros(1)}, "content"),
        ({"c": torch.full((3,), torch.nan)}, "non-finite"),
    ],
)
def test_uploads_are_checked_like_models(record, reason):
    sent = instructions(clients=1)
    admitted = Admission().admit(sent, uploading(record)(sent[0]), PARAMS, {"c": torch.ones(3)})
    whole = stack(admitted)
    assert dict(admitted.rejected) == ({} if reason is None else {reason: 1})
    if reason is None:
        assert whole.client_arrays["c"].tolist() == [[0, 0, 0]]


# --- stacked chunks --------------------------------------------------------------------------


def stacked(clients=6, **metrics):
    rows = torch.arange(2.0 * clients).reshape(clients, 2)
    columns = {NUM_EXAMPLES: np.ones(clients), **metrics}
    return Chunk(client_index=10 + np.arange(clients), arrays={"x": rows}, metrics=columns)


def admit_chunk(chunk, rules=None, expected=PARAMS):
    return (rules or Admission()).admit([], Stacked(chunk), expected)


@pytest.mark.parametrize(
    ("weight", "good"),
    [(1, True), (1e-9, True), (1e7, True), (10_000_001, False), (1e12, False), (0, False),
     (-80, False), (np.nan, False), (np.inf, False)],
)  # fmt: skip
def test_weights_in_a_chunk(weight, good):
    chunk = stacked()
    chunk.metrics[NUM_EXAMPLES][2] = weight
    admitted = admit_chunk(chunk)
    (kept,) = admitted.chunks()
    assert len(kept) == 5 + good
    assert dict(admitted.rejected) == ({} if good else {"weight": 1})
    if not good:
        assert "client 12" in admitted.details[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["arrays", "client arrays", "metrics"])
def test_values_in_a_chunk(value, where):
    chunk = stacked(loss=np.ones(6))
    chunk.client_arrays["c"] = torch.zeros(6)
    if where == "metrics":
        chunk.metrics["loss"][4] = value
    else:
        tensor = chunk.arrays["x"][4] if where == "arrays" else chunk.client_arrays["c"]
        tensor[0 if where == "arrays" else 4] = value
    admitted = admit_chunk(chunk)
    (kept,) = admitted.chunks()
    assert kept.client_index.tolist() == admitted.admitted == [10, 11, 12, 13, 15]
    assert dict(admitted.rejected) == {"non-finite": 1}


def test_infinities_that_would_cancel_in_the_sum():
    chunk = stacked()
    chunk.arrays["x"][0] = torch.tensor([np.inf, -np.inf])
    admitted = admit_chunk(chunk)
    assert [len(c) for c in admitted.chunks()] == [5]


def test_finite_values_whose_sum_overflows():
    chunk = stacked()
    chunk.arrays["x"][0] = 3e38
    admitted = admit_chunk(chunk)
    assert [len(c) for c in admitted.chunks()] == [6]
    good = exchange(lambda m: [with_x(m, np.full(2, 3e38, np.float32))])
    assert len(stack(good)) == 10


def test_a_chunk_of_nothing_good_is_not_yielded():
    chunk = stacked()
    chunk.arrays["x"][:] = np.nan
    admitted = admit_chunk(chunk)
    assert list(admitted.chunks()) == []
    assert dict(admitted.rejected) == {"non-finite": 6}


def test_who_is_neither_in_a_chunk_nor_failed_is_late():
    good = stacked(4)
    good.client_index -= 10
    failed = Chunk(client_index=np.arange(0), arrays={}, errors={4: "raised"})
    admitted = Admission().admit(instructions(clients=6), Stacked(good, failed), PARAMS)
    assert len(list(admitted.chunks())) == 1
    assert admitted.late == 1


def test_clients_that_failed_beside_a_chunk_are_counted():
    chunk = stacked()
    chunk.errors = {31: "ValueError: no", 30: "x" * 10_000}
    admitted = admit_chunk(chunk)
    (kept,) = admitted.chunks()
    assert len(kept) == 6
    assert dict(admitted.rejected) == {"error": 2}
    assert admitted.details[0] == f"reply of client 30 rejected (error): {'x' * MAX_REASON}"
    assert admitted.details[1] == "reply of client 31 rejected (error): ValueError: no"


def test_if_every_client_of_a_chunk_fails_the_run_ends_with_the_first_message():
    chunk = stacked(clients=0)
    chunk.errors = {4: "ValueError: no", 3: "KeyError: what"}
    with pytest.raises(ClientError, match=r"every client failed.*\nclient 3: KeyError: what"):
        list(admit_chunk(chunk).chunks())


def test_an_empty_chunk_and_arrays_without_elements():
    empty = stacked().rows(np.zeros(6, bool))
    assert list(admit_chunk(empty).chunks()) == []
    chunk = stacked()
    chunk.arrays["none"] = torch.zeros(6, 0)
    chunk.arrays["scalar"] = torch.zeros(6)
    chunk.arrays["count"] = torch.zeros(6, dtype=torch.int64)
    assert [len(c) for c in admit_chunk(chunk).chunks()] == [6]


def test_a_chunk_without_weights_is_rejected():
    chunk = stacked()
    del chunk.metrics[NUM_EXAMPLES]
    admitted = admit_chunk(chunk)
    assert list(admitted.chunks()) == []
    assert dict(admitted.rejected) == {"weight": 6}


def test_an_evaluation_chunk_forgives_clients_without_samples():
    chunk = stacked(loss=np.ones(6))
    chunk.metrics[NUM_EXAMPLES][:2] = 0
    admitted = admit_chunk(chunk, Admission(on_failure="stop"), expected=None)
    (kept,) = admitted.chunks()
    assert kept.client_index.tolist() == [12, 13, 14, 15]
    assert admitted.rejected == {}


def test_a_clean_chunk_is_passed_on_uncopied():
    chunk = stacked()
    (kept,) = admit_chunk(chunk).chunks()
    assert kept is chunk


# --- failure policies ------------------------------------------------------------------------


def test_on_failure_stop_ends_at_the_first_rejection():
    for draw in (list, lambda a: list(a.chunks())):
        admitted = exchange(BAD["weight"]["zero"], rules=Admission(on_failure="stop"))
        with pytest.raises(ClientError, match=r"client 3 rejected \(weight\)[\s\S]*=continue"):
            draw(admitted)


def test_on_failure_stop_lets_good_rounds_pass():
    admitted = exchange(lambda m: [reply(m)], rules=Admission(on_failure="stop"))
    assert len(stack(admitted)) == 10


def all_failing(count=3):
    sent = instructions(clients=count)
    return sent, [failing(m, f"client said {k}\nTraceback ...") for k, m in enumerate(sent)]


def test_if_every_client_fails_the_run_ends_with_the_first_message():
    for draw in (list, lambda a: list(a.chunks())):
        sent, replies = all_failing()
        with pytest.raises(ClientError, match=r"every client failed.*\nclient 0: client said 0"):
            draw(Admission().admit(sent, replies, PARAMS))


def test_some_failures_do_not_end_the_run():
    sent, replies = all_failing(3)
    admitted = Admission().admit(sent, [*replies[:2], honest(sent[2])], PARAMS)
    assert len(stack(admitted)) == 1
    assert dict(admitted.rejected) == {"error": 2}


def test_failures_beside_other_faults_do_not_end_the_run():
    sent, replies = all_failing(3)
    bad = BAD["weight"]["zero"](sent[2])
    admitted = Admission().admit(sent, [*replies[:2], *bad], PARAMS)
    assert list(admitted.chunks()) == []
    assert dict(admitted.rejected) == {"error": 2, "weight": 1}


def test_nodes_that_are_gone_do_not_end_the_run():
    """Flower answers for them, under its own node id."""
    sent = instructions(clients=2)
    replies = []
    for message in sent:
        lost = failing(message, "Node Unavailable")
        lost.metadata.__dict__["_src_node_id"] = 1
        replies.append(lost)
    admitted = Admission().admit(sent, replies, PARAMS)
    assert list(admitted.chunks()) == []
    assert dict(admitted.rejected) == {"error": 2}
    assert admitted.details[0] == "reply of node 1 rejected (error): Node Unavailable"


def test_an_endless_error_is_cut():
    sent = instructions(clients=2)
    admitted = Admission().admit(sent, [failing(sent[0], "x" * 10**6), honest(sent[1])], PARAMS)
    list(admitted.chunks())
    assert len(admitted.details[0]) < MAX_REASON + 100


@pytest.mark.parametrize(
    "settings",
    [{"max_examples": 0}, {"on_failure": "ignore"}, {"timeout_s": 0}, {"timeout_s": -1.0}],
)
def test_rules_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Admission(**settings)


def test_the_cap_is_a_rule():
    admitted = exchange(lambda m: [reply(m, examples=11)], rules=Admission(max_examples=10))
    list(admitted.chunks())
    assert dict(admitted.rejected) == {"weight": 1}


def test_good_replies_keep_their_values():
    whole = stack(exchange(lambda m: [with_x(m, np.array([7, 8], np.float32))]))
    expected = [[1.0 + k, 2.0 + k] if k != BAD_ONE else [7.0, 8.0] for k in range(10)]
    assert whole.arrays["x"].tolist() == expected
    assert whole.num_examples.tolist() == [1, 2, 3, 1, 5, 6, 7, 8, 9, 10]
    assert to_tensors(to_record(PARAMS, zero_copy=True))["x"] is not PARAMS["x"]
