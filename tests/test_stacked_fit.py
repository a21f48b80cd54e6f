"""Many small models at once, against PyTorch's own optimisers on one after another."""

import pytest
import torch

from fedsim.stacked_fit import fit


def problem():
    rng = torch.Generator().manual_seed(0)
    start = {"w": torch.randn(3, 4, generator=rng, dtype=torch.float64)}
    x = torch.randn(3, 6, 4, generator=rng, dtype=torch.float64)
    y = torch.randn(3, 6, generator=rng, dtype=torch.float64)
    weight = torch.ones(3, 6)
    weight[1, 4:] = 0  # a shorter batch
    others, one, last = weight.clone(), torch.zeros(3, 6), weight.clone()
    others[0] = 0  # whose clock stands still,
    one[0] = 1  # and who catches up
    last[2] = 0  # a model that has finished
    steps = [weight, weight, others, one, weight, one * 0, last, last]
    return start, [((x, y), weight_KB) for weight_KB in steps]


def loss(params, x, y):
    return (x @ params["w"] - y).square()


@pytest.mark.parametrize(
    ("optimiser", "more"),
    [("adam", {}), ("sgd", {}), ("sgd", {"momentum": 0.9, "weight_decay": 0.1})],
)
def test_as_one_after_another(optimiser, more):
    start, batches = problem()
    fitted, losses = fit(start, batches, loss, lr=0.05, optimiser=optimiser, **more)
    for k in range(3):
        w = start["w"][k].clone().requires_grad_()
        kind = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
        own, total, seen = kind([w], lr=0.05, **more), 0.0, 0
        for (x, y), weight in batches:
            true = weight[k] > 0
            if not true.any():
                continue
            own.zero_grad()
            value = loss({"w": w}, x[k][true], y[k][true]).mean()
            value.backward()
            own.step()
            total, seen = total + float(value.detach()) * int(true.sum()), seen + int(true.sum())
        assert torch.allclose(fitted["w"][k], w.detach(), rtol=0, atol=1e-12)
        assert float(losses[k]) == pytest.approx(total / seen, rel=1e-12)
    assert torch.equal(start["w"], problem()[0]["w"])


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_pull_is_the_gradient_of_a_distance(optimiser):
    start, batches = problem()
    pulled, losses = fit(start, batches, loss, lr=0.05, optimiser=optimiser, pull=2.0)

    def held(params, x, y):
        return loss(params, x, y) + (params["w"] - params["from"]).square().sum()

    fixed = {"from": start["w"]}
    again, more = fit(start, batches, held, lr=0.05, optimiser=optimiser, fixed=fixed)
    assert torch.allclose(pulled["w"], again["w"], rtol=0, atol=1e-12)
    assert (losses < more).all()


def test_padding_counts_for_nothing_and_fixed_tensors_stay():
    start, batches = problem()
    (x, y), weight = batches[0]
    bad = y.clone()
    bad[1, 4:] = 1e6
    fixed = {"shift": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    shifted = lambda p, x, y: loss(p, x, y - p["shift"])  # noqa: E731
    with_bad, _ = fit(start, [((x, bad), weight)], shifted, lr=0.1, fixed=fixed)
    without, _ = fit(start, [((x, y), weight)], shifted, lr=0.1, fixed=fixed)
    assert torch.equal(with_bad["w"], without["w"]) and set(without) == {"w"}
    assert fixed["shift"].tolist() == [1, 2, 3]
