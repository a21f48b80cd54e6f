"""FedAvg with pfl: its `SimulatedBackend`, one process, as its own examples set it up.

python pfl_peer.py DATA.npz MODEL ROUNDS
"""

import sys

import torch
from model import BATCH, CLIENTS, COHORT, LR, SAMPLES, load, make_model
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel

x, y, test_x, test_y = load(sys.argv[1])
rounds = int(sys.argv[3])


class Module(torch.nn.Module):
    """A model as pfl wants it: it knows its own loss."""

    def __init__(self, name):
        super().__init__()
        self.net = make_model(name)

    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, inputs, targets, is_eval=False):
        self.train(not is_eval)
        return torch.nn.functional.cross_entropy(self(inputs), targets)

    def metrics(self, inputs, targets):
        return {}


def user(k):
    """Return the data of one user."""
    rows = slice(SAMPLES * k, SAMPLES * (k + 1))
    return Dataset([x[rows], y[rows]], user_id=k)


module = Module(sys.argv[2])
model = PyTorchModel(
    module, torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
)
users = FederatedDataset(user, get_user_sampler("random", list(range(CLIENTS))))
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=10**9,
        train_cohort_size=COHORT,
        val_cohort_size=0,
    ),
    backend=SimulatedBackend(training_data=users, val_data=users),
    model=model,
    model_train_params=NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH
    ),
    model_eval_params=NNEvalHyperParams(local_batch_size=BATCH),
    callbacks=[],
)
with torch.no_grad():
    print("accuracy", (module(test_x).argmax(1) == test_y).double().mean().item())
