"""A first run: train, look at it, change one thing, compare.

Cells begin with `# %%`: run them one by one in an editor, or all at once with
`python results/tutorials/1_first_run.py`.
"""

# %% [markdown]
# A **scenario** names everything that a run is made of: data, who holds what, who takes part,
# model, strategy, client work, privacy, attackers. `fedsim list scenarios` shows those that ship.

# %%
import os

import fedsim

ROUNDS = os.environ.get("TUTORIAL_ROUNDS", "60")  # tests set it to 2
COMMON = [f"rounds={ROUNDS}", "partition.holdout=0.2", "evaluation.clients=all"]

fedavg = fedsim.run("quickstart", [*COMMON, "strategy=fedavg"])
print(fedavg)

# %% [markdown]
# Metrics are NumPy columns, a value for each round; `nan` where a round did not measure it.

# %%
accuracy = fedavg.metrics["central.accuracy"]
print("columns:", ", ".join(fedavg.metrics))
print(f"test accuracy before training {accuracy[0]:.3f}, after {ROUNDS} rounds {accuracy[-1]:.3f}")

# %% [markdown]
# Who holds what, and who took part? With Dirichlet(0.5) shares, most clients hold few digits.

# %%
holdings = fedavg.plot_holdings()
participation = fedavg.plot_participation()

# %% [markdown]
# One thing changed: control variates against client drift. Every other draw stays the same, so that
# the curves differ by the algorithm alone.

# %%
scaffold = fedsim.run("quickstart", [*COMMON, "strategy=scaffold"])
curves = fedavg.plot_curves(scaffold)
fairness = fedavg.plot_fairness(scaffold)
for run in (fedavg, scaffold):
    last, worst = run.metrics["central.accuracy"][-1], run.metrics["per-client.accuracy.p10"][-1]
    name = run.config.values["strategy"]["_target_"]
    print(f"{name}: {last:.3f}, 10 % of clients below {worst:.3f}")

# %% [markdown]
# The trained model is a torch module; the whole story of a run is in its report.

# %%
print(fedavg.model)
print("report:", fedavg.report)
