import pytest
import torch
from flwr.serverapp.strategy import FedAdam
from safetensors.torch import save_file
from torch import nn

from fedsim.client import LocalSGD
from fedsim.engines.cohort import Cohort
from fedsim.engines.in_process import InProcess
from fedsim.errors import ConfigError
from fedsim.models.linear import LinearModel
from fedsim.models.lora import Adapted, LoRA
from fedsim.models.pretrained import Pretrained
from fedsim.models.transformer import Transformer
from strategies.fedavg import FedAvg
from tests.helpers import classification, distance, make_model, make_runtime, run, tokens

BASE = Transformer(width=8, heads=2, layers=2)
PART = LoRA(base=BASE, targets=["query_key_value", "blocks.0.mlp_in"], rank=2, alpha=3.0)
DATA = tokens()


def test_it_starts_as_its_base_to_the_bit():
    base, model = make_model(BASE, DATA), make_model(PART, DATA)
    assert torch.equal(base(DATA.train_x), model(DATA.train_x))


def test_which_layers_are_adapted_and_what_is_trained():
    model = make_model(PART, DATA)
    adapted = [path for path, layer in model.named_modules() if isinstance(layer, Adapted)]
    assert adapted == ["blocks.0.query_key_value", "blocks.0.mlp_in", "blocks.1.query_key_value"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{path}.{end}.weight" for path in adapted for end in ("down", "up")}
    assert all(
        type(layer) is nn.Linear
        for path in adapted
        for layer in model.get_submodule(path).children()
    )
    more = make_model(LoRA(base=BASE, targets=["mlp_out"], train=["head", "norm"]), DATA)
    trained = {name for name, p in more.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias", "norm.weight", "norm.bias"} < trained
    assert len(trained) == 4 + 2 * 2


def test_the_adapted_layer_by_hand():
    layer = nn.Linear(2, 1)
    adapted = Adapted(layer, rank=1, scale=1.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.bias.fill_(0.5)
        adapted.down.weight.copy_(torch.tensor([[3.0, -1.0]]))
        adapted.up.weight.fill_(2.0)
    # 1*4 + 2*5 + 0.5 + 1.5 * 2 * (3*4 - 1*5)
    assert adapted(torch.tensor([[4.0, 5.0]])).item() == 14.5 + 21.0


def test_it_is_the_base_with_the_weights_added_up():
    model = make_model(PART, DATA).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("up.weight"):
                nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    merged = make_model(BASE, DATA).double()
    layers = dict(model.named_modules())
    weights = {name.replace(".base", ""): p for name, p in model.named_parameters()}
    for path, layer in layers.items():
        if isinstance(layer, Adapted):
            weights[f"{path}.weight"] = (
                layer.base.weight + 1.5 * layer.up.weight @ layer.down.weight
            )
    merged.load_state_dict({name: weights[name] for name in merged.state_dict()})
    torch.testing.assert_close(model(DATA.train_x), merged(DATA.train_x), rtol=1e-10, atol=1e-12)


def test_a_whole_model_of_one_layer():
    data = classification()
    assert isinstance(
        make_model(LoRA(base=LinearModel(), targets=["output"]), data).output, Adapted
    )


@pytest.mark.parametrize("strategy", [FedAvg, lambda: FedAdam(eta=0.1, tau=1e-6)])
@pytest.mark.parametrize("engine", [InProcess(), Cohort(chunk=3, plan="rules")])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(engine, strategy):
    runtime = make_runtime(DATA, PART, work=LocalSGD(lr=0.3, batch_size=4, weight_decay=0.1))
    start = runtime.initial_params()
    end, _ = run(runtime, engine, strategy=strategy(), rounds=3)
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same == runtime.frozen
    assert set(start) - same == set(runtime.trainable)


def test_stacked_clients_train_as_each_alone():
    make = lambda: make_runtime(DATA, PART, work=LocalSGD(lr=0.5, batch_size=4))  # noqa: E731
    expected, _ = run(make(), InProcess(), rounds=3)
    got, _ = run(make(), Cohort(chunk=3, plan="rules"), rounds=3)
    mine = [{k: p[k] for k in make().trainable} for p in (got, expected, make().initial_params())]
    assert distance(mine[0], mine[1]) < 1e-5
    assert distance(mine[1], mine[2]) > 1e-2


def test_a_pretrained_base(tmp_path):
    base = make_model(BASE, DATA)
    with torch.no_grad():
        base.norm.bias.fill_(0.25)
    save_file(base.state_dict(), tmp_path / "start.safetensors")
    start = Pretrained(file=str(tmp_path / "start.safetensors"), base=BASE)
    model = make_model(LoRA(base=start, targets=["mlp_out"]), DATA)
    assert torch.equal(model(DATA.train_x), base(DATA.train_x))
    assert not model.norm.bias.requires_grad


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ["mlp_inn"]}, r"targets: 'mlp_inn' is no linear layer.*did you mean 'mlp_in'"),
        ({"targets": ["norm"]}, r"targets: 'norm' is no linear layer"),
        ({"targets": ["_key_value"]}, r"is no linear layer"),
        ({"train": ["heads"]}, r"train: 'heads' is no layer with parameters.*did you mean 'head'"),
        ({"targets": ["head"], "train": ["head"]}, r"train: layer 'head' is adapted already"),
    ],
)
def test_names_that_mean_nothing(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(base=BASE, **fields).build(DATA)


def test_fields():
    with pytest.raises(ConfigError, match=r"targets: \[\] adapts no layer"):
        LoRA(targets=[])
    with pytest.raises(ConfigError, match=r"base: 3 is no model part"):
        LoRA(base=3)
