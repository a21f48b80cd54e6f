"""The hypernetwork: its gradient against autograd end to end, its step, its state, who joins."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fedsim.errors import ResumeError
from fedsim.hypernetwork import EMBEDDING, Hypernetwork

LIKE = {"weight": torch.zeros(3, 4, dtype=torch.float64), "bias": torch.ones(3).double()}


def made(clients=5, **changes):
    hyper = Hypernetwork(**{"width": 8, "depth": 2, "from_model": False, **changes})
    hyper.fit(LIKE, clients, seed=3)
    return hyper


def loss_of(phi, x, y):
    return (functional_call(torch.nn.Linear(4, 3), phi, (x,)) - y).square().mean()


@pytest.mark.parametrize("from_model", [False, True])
def test_first_minus_last_is_the_gradient_end_to_end(from_model):
    """One full-batch SGD step at lr a: J^T (phi - phi~) = a · grad of L(h(alpha_j; theta))."""
    hyper, lr, j = made(from_model=from_model), 0.05, np.array([2])
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(7, n, generator=rng, dtype=torch.float64) for n in (4, 3))
    phi = {n: t[0].requires_grad_() for n, t in hyper(j).items()}
    grads = torch.autograd.grad(loss_of(phi, x, y), list(phi.values()))
    after = {n: (t - lr * g).detach() for (n, t), g in zip(phi.items(), grads, strict=True)}
    ours = hyper.gradient(j, {n: (phi[n].detach() - after[n])[None] for n in phi})
    leaves = {n: t.clone().requires_grad_() for n, t in hyper.params.items()}
    hyper_out = {n: t[0] for n, t in hyper._forward(leaves, j).items()}
    theirs = torch.autograd.grad(loss_of(hyper_out, x, y), list(leaves.values()))
    worst = max(float((ours[n] - lr * g).abs().max()) for n, g in zip(leaves, theirs, strict=True))
    assert worst < 1e-12
    others = [k for k in range(5) if k != 2]
    assert not ours[EMBEDDING][others].any() and ours[EMBEDDING][2].abs().min() > 0
    before = float(loss_of(phi, x, y).detach())
    hyper.params = {n: t - 0.5 * ours[n] for n, t in hyper.params.items()}
    assert float(loss_of({n: t[0] for n, t in hyper(j).items()}, x, y)) < before


def test_the_step_is_clipped_and_adam_as_pytorch_takes_it():
    hyper, twin = made(), made()
    rng = torch.Generator().manual_seed(1)
    leaves = {n: t.clone().requires_grad_() for n, t in twin.params.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=0.01)
    for step in range(3):
        who = np.array([0, 3]) if step else np.array([1])
        sent = hyper(who)
        returned = {
            n: t + 40 * torch.randn(t.shape, generator=rng, dtype=t.dtype) for n, t in sent.items()
        }
        twin.params = {n: t.detach() for n, t in leaves.items()}
        vectors = {n: (sent[n] - returned[n]) / len(who) for n in sent}
        for (n, g), leaf in zip(twin.gradient(who, vectors).items(), leaves.values(), strict=True):
            assert n in leaves
            leaf.grad = g
        norm = torch.nn.utils.clip_grad_norm_(leaves.values(), 5.0)
        assert norm > 5
        optimiser.step()
        hyper.step(who, sent, returned, lr=0.01, clip_norm=5.0)
        for n, leaf in leaves.items():
            assert torch.allclose(hyper.params[n], leaf, rtol=0, atol=1e-7)


def test_who_joins_moves_no_other_and_a_resumed_one_goes_on_to_the_same_bits():
    first, second = made(), Hypernetwork(width=8, depth=2)
    who = np.array([1, 4])

    def step(hyper):
        sent = hyper(who)
        hyper.step(who, sent, {n: t * 0.9 for n, t in sent.items()}, lr=0.01, clip_norm=50)

    step(first)
    second.load_state_dict(first.state_dict("h/"), "h/")
    for hyper in (first, second):
        hyper.fit(LIKE, 5, seed=3)
        before = hyper(who)
        hyper.fit(LIKE, 7, seed=3)
        assert all(torch.equal(before[n], t) for n, t in hyper(who).items())
        step(hyper)
    for name, tensor in first.params.items():
        assert torch.equal(tensor, second.params[name])
    fresh = Hypernetwork(width=8, depth=2, size=first.params[EMBEDDING].shape[1])
    fresh.fit(LIKE, 7, seed=3)
    assert len(fresh.params[EMBEDDING]) == 7
    state = first.state_dict("h/")
    del state["h/adam-steps"]
    with pytest.raises(ResumeError, match="no whole hypernetwork"):
        second.load_state_dict(state, "h/")
    with pytest.raises(ResumeError, match="of another model"):
        first.fit({"weight": LIKE["weight"]}, 7, seed=3)


def test_a_client_is_sent_the_same_bits_whoever_else_is_asked():
    hyper = made(from_model=True)
    whole, some = hyper(np.arange(5)), hyper(np.array([3]))
    assert all(torch.equal(whole[n][3:4], some[n]) for n in LIKE)
    assert hyper(np.arange(0))["weight"].shape == (0, 3, 4)
    # Near the model's own first values, and not the same for two clients.
    assert (whole["bias"] - 1).abs().max() < 0.2 and not torch.equal(
        whole["bias"][0], whole["bias"][1]
    )
