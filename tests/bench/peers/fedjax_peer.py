"""FedAvg with FedJAX: its own `federated_averaging`, as its own examples set it up.

python fedjax_peer.py DATA.npz MODEL ROUNDS
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.tree_map = jax.tree_util.tree_map  # FedJAX 0.0.17 on a JAX that has moved it

import fedjax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402

LR, CLIENTS, COHORT, SAMPLES, BATCH = 0.05, 1000, 50, 50, 10

data = np.load(sys.argv[1])
rounds = int(sys.argv[3])
sizes = {"linear": (784, 10), "mlp": (784, 200, 10)}[sys.argv[2]]


def initial():
    """Return torch's initial law for the hidden layers, zeros for a linear model."""
    rng, layers = np.random.default_rng(0), []
    for inputs, outputs in itertools.pairwise(sizes):
        bound = 0.0 if len(sizes) == 2 else inputs**-0.5
        w = rng.uniform(-bound, bound, (inputs, outputs)).astype(np.float32)
        b = rng.uniform(-bound, bound, outputs).astype(np.float32)
        layers.append((jnp.asarray(w), jnp.asarray(b)))
    return layers


def logits(params, x):
    """Return the model's outputs."""
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def loss(params, batch, rng):
    """Return the mean cross-entropy of one batch."""
    log_p = jax.nn.log_softmax(logits(params, batch["x"]))
    return -jnp.mean(jnp.take_along_axis(log_p, batch["y"][:, None], 1))


x, y = data["x"], data["y"].astype(np.int32)
clients = fedjax.InMemoryFederatedData({
    b"%06d" % k: {"x": x[SAMPLES * k : SAMPLES * (k + 1)], "y": y[SAMPLES * k : SAMPLES * (k + 1)]}
    for k in range(CLIENTS)
})  # fmt: skip
algorithm = fed_avg.federated_averaging(
    jax.grad(loss),
    fedjax.optimizers.sgd(LR),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, seed=0),
)
sampler = fedjax.client_samplers.UniformGetClientSampler(clients, COHORT, seed=0)
state = algorithm.init(initial())
for number in range(rounds):
    sampler.set_round_num(number)
    state, _ = algorithm.apply(state, sampler.sample())
guess = np.asarray(logits(state.params, data["test_x"])).argmax(1)
print("accuracy", float((guess == data["test_y"]).mean()))
