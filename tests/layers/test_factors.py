"""Weights kept as factors against the same matrices made and multiplied, in float64."""

import torch

from fedsim.layers.factors import FactoredWeights, worth_factors

K, S, B, OUT, IN = 3, 2, 4, 5, 6
RNG = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(shape, generator=RNG, dtype=torch.float64)


def trained(known):
    """Return (factors after two steps, the matrices by hand); the last client stops after one."""
    start, x, steps = randn(OUT, IN), randn(K, S * B, IN), []
    v = x.clone() if known else torch.full_like(x, torch.nan)
    factors = FactoredWeights(start, torch.full((K, S * B, OUT), torch.nan), v, known=known)
    factors.u = factors.u.double()
    rows = start.repeat(K, 1, 1)
    for step, (active, width) in enumerate([(K, 3), (K - 1, B)]):
        a, g, bias = (
            x[:active, step * B : step * B + width],
            randn(active, width, OUT),
            randn(K, OUT),
        )
        outputs = torch.einsum("abi,aoi->abo", a, rows[:active]) + bias[:active, None]
        torch.testing.assert_close(factors.apply(a, bias[:active]), outputs)
        torch.testing.assert_close(factors.apply(a, None), outputs - bias[:active, None])
        back = torch.einsum("abo,aoi->abi", g, rows[:active])
        torch.testing.assert_close(factors.back(g), back)
        factors.add_(a, g, -0.1, B)
        rows[:active] -= 0.1 * torch.einsum("abo,abi->aoi", g, a)
        steps.append(step)
    return factors, rows


def test_two_steps_are_those_of_the_matrices():
    for known in (True, False):
        factors, rows = trained(known)
        torch.testing.assert_close(factors.rows(), rows)
        weights_K = randn(K)
        expected = torch.einsum("k,koi->oi", weights_K, rows - factors.start)
        torch.testing.assert_close(factors.weighted_update(weights_K), expected)


def test_by_hand():
    start = torch.tensor([[1.0, 2.0]])
    v = torch.tensor([[[1.0, 3.0]]])
    factors = FactoredWeights(start, torch.empty(1, 1, 1), v, known=True)
    assert factors.apply(v, torch.tensor([[10.0]])).item() == 17  # 1·1 + 2·3 + 10
    factors.add_(v, torch.tensor([[[4.0]]]), -0.5, 1)
    assert factors.rows().tolist() == [[[-1.0, -4.0]]]  # [1, 2] − 0.5 · 4 · [1, 3]
    assert factors.weighted_update(torch.tensor([2.0])).tolist() == [[-4.0, -12.0]]


def test_what_may_not_be_finite_is_not_called_so():
    factors, _ = trained(known=True)
    assert factors.surely_finite().tolist() == [True] * K
    for bad in (torch.nan, torch.inf, 1e308):
        factors, _ = trained(known=True)
        factors.u[1, 0] = bad
        assert factors.surely_finite().tolist() == [True, False, True]
    factors.start = torch.full((OUT, IN), torch.inf)
    assert not factors.surely_finite().any()


def test_factors_are_worth_it_while_they_are_smaller():
    assert worth_factors(200, 784, 159)  # 159 · 984 = 156,456 <= 156,800
    assert not worth_factors(200, 784, 160)
    assert not worth_factors(10, 784, 50)
