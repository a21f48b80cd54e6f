"""Per-FedAvg by hand on (w - b)^2 / 2, against autograd through the adaptation, and its limits."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedsim.client import ClientHalf, LocalSGD
from fedsim.client.half import Batch
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.cnn import CNN
from fedsim.models.mlp import MLP
from fedsim.models.transformer import Transformer
from strategies.fedavg import FedAvg
from strategies.per_fedavg import PerFedAvg
from tests.helpers import Some, classification, distance, make_runtime, run, tokens
from tests.strategies._quadratic import ENGINES, trace


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
@pytest.mark.parametrize(("variant", "power"), [("fo", 1), ("hf", 2), ("maml", 2)])
def test_two_clients_by_hand(variant, power, engine):
    """∇F(w - α∇F(w)) = (1 - α)(w - b), and (1 - α)^2 (w - b) with the Hessian.

    So each step has w - b shrink by 1 - lr (1 - α)^power, and the adapted model is 1 - α nearer.
    """
    strategy = PerFedAvg(alpha=0.5, variant=variant)
    params, losses = trace(strategy, [1, 3], [[1, 1], [0, 1]], engine)
    shrink = 1 - 0.1 * 0.5**power
    x = np.array([2 * (1 - shrink**2)])
    x = np.append(x, 3 - shrink**2 * (3 - x[0]))
    assert params["weight"].item() == pytest.approx(x[1], rel=1e-9)
    assert losses == pytest.approx((0.5 * (x[:, None] - [1, 3])) ** 2 / 2, rel=1e-9)


@pytest.mark.parametrize("part", ["mlp", "cnn", "transformer"])
def test_maml_is_the_gradient_through_the_adaptation(part):
    dataset, model = {
        "mlp": (classification(dtype=torch.float64), MLP(hidden=[5], activation="tanh")),
        "cnn": (classification(shape=(1, 8, 8), dtype=torch.float64), CNN(channels=[2], hidden=[])),
        "transformer": (tokens(), Transformer(width=4, heads=2, layers=1)),
    }[part]
    runtime = make_runtime(dataset, lambda: model.build(dataset).double())
    params = runtime.initial_params()
    batch = Batch(x=dataset.train_x[:9], y=dataset.train_y[:9])
    context = runtime.context(params=params, client_arrays={}, server_round=1, steps=1)

    def whole(parts):
        leaves = {name: t.clone().requires_grad_() for name, t in params.items()}
        plain = ClientHalf()
        inner = plain.loss(leaves, parts[0], context)
        grads = torch.autograd.grad(inner, list(leaves.values()), create_graph=True)
        pairs = zip(leaves.items(), grads, strict=True)
        adapted = {name: leaf - 0.3 * grad for (name, leaf), grad in pairs}
        outer = plain.loss(adapted, parts[1], context)
        grads = torch.autograd.grad(outer, list(leaves.values()))
        return dict(zip(leaves, grads, strict=True)), outer

    half = PerFedAvg(alpha=0.3, variant="maml", split=False).client_half
    grads, loss, _ = half.gradient(params, batch, context)
    with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
        expected, outer = whole([batch, batch])
    assert loss.item() == pytest.approx(outer.item(), rel=1e-12)
    assert distance(grads, expected) < 1e-12
    near, _, _ = PerFedAvg(alpha=0.3, variant="hf", delta=1e-4, split=False).client_half.gradient(
        params, batch, context
    )
    assert distance(near, expected) < 1e-5
    first, _, _ = PerFedAvg(alpha=0.3, variant="fo", split=False).client_half.gradient(
        params, batch, context
    )
    assert distance(first, expected) > 1e-3


def test_the_three_gradients_are_of_three_parts():
    dataset = classification(dtype=torch.float64)
    runtime = make_runtime(dataset, MLP(hidden=[5]))
    params = runtime.initial_params()
    context = runtime.context(params=params, client_arrays={}, server_round=1, steps=1)
    seen = []

    class Watch(type(PerFedAvg().client_half)):
        def loss(self, params, batch, context):
            seen.append(batch.x)
            return super().loss(params, batch, context)

    x, y = dataset.train_x[:8], dataset.train_y[:8]
    for variant, parts in {"fo": 2, "maml": 3, "hf": 3}.items():
        seen.clear()
        Watch(0.1, variant, 0.01, True).gradient(params, Batch(x=x, y=y), context)
        used = [*seen[:2], seen[-1]]
        assert torch.equal(used[0], x[::parts])
        assert torch.equal(used[1], x[1::parts])
        assert torch.equal(used[2], x[parts - 1 :: parts])
    seen.clear()
    Watch(0.1, "maml", 0.01, True).gradient(params, Batch(x=x[:2], y=y[:2]), context)
    assert all(torch.equal(used, x[:2]) for used in seen)


@pytest.mark.parametrize("variant", ["fo", "hf", "maml"])
@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3)])
def test_without_adaptation_it_is_fedavg(engine, variant):
    dataset, settings = classification(), {"rounds": 3, "schedule": Some(8, 5)}
    work = LocalSGD(lr=0.1, batch_size=4, momentum=0.5)
    strategy = PerFedAvg(alpha=0.0, variant=variant, split=False)
    runtime = make_runtime(
        dataset, MLP(hidden=[5]), half=strategy.client_half, work=work, holdout=0.3
    )
    got, reports = run(runtime, engine, strategy=strategy, evaluate=True, **settings)
    plain = make_runtime(dataset, MLP(hidden=[5]), work=work, holdout=0.3)
    expected, others = run(
        plain, InProcess(), strategy=FedAvg(weighting="uniform"), evaluate=True, **settings
    )
    assert distance(got, expected) < 1e-6
    for one, other in zip(reports, others, strict=True):
        assert one.per_client["loss"] == pytest.approx(other.per_client["loss"], rel=1e-5)
        assert one.train == pytest.approx(other.train, rel=1e-5)


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"variant": "second"}, {"delta": 0.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PerFedAvg(**settings)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # attention under torch.func
def test_a_transformer_under_the_vmap_plan():
    dataset, model = tokens(), Transformer(width=4, heads=2, layers=1)
    strategy, results = PerFedAvg(variant="maml"), []
    for engine in (InProcess(), Cohort(plan="vmap", chunk=4)):
        runtime = make_runtime(
            dataset, lambda: model.build(dataset).double(), half=strategy.client_half
        )
        results.append(run(runtime, engine, strategy=strategy, rounds=1)[0])
    assert distance(*results) < 1e-12
