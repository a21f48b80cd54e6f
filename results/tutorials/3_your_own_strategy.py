"""Your own strategy: one file, one YAML, in a folder of your own.

Cells begin with `# %%`; `python results/tutorials/3_your_own_strategy.py` runs all of them.
"""

# %% [markdown]
# `own/signed_mean.py` is the strategy, `own/strategy/signed_mean.yaml` makes it a part,
# `own/signed.yaml` is a scenario that uses it. Nothing of fedsim is touched: a scenario outside the
# packaged folder has its own folder searched first, and `plugins:` says which package it may name.
# (Inside a checkout, `fedsim new strategy signed_mean` writes these files, with a test.)

# %%
import os
import sys
from pathlib import Path

import fedsim

HERE = Path(__file__).parent / "own"
sys.path.insert(0, str(HERE))  # where `plugins: [signed_mean.]` is found
ROUNDS = os.environ.get("TUTORIAL_ROUNDS", "60")  # tests set it to 2
print((HERE / "signed_mean.py").read_text())

# %%
mine = fedsim.run(str(HERE / "signed.yaml"), [f"rounds={ROUNDS}"])
fedavg = fedsim.run(str(HERE / "signed.yaml"), [f"rounds={ROUNDS}", "strategy=fedavg"])
curves = mine.plot_curves(fedavg)

# %% [markdown]
# Its fields are keys of the scenario, with their types and ranges checked.

# %%
try:
    fedsim.run(str(HERE / "signed.yaml"), ["strategy.step=-1"])
except fedsim.errors.ConfigError as error:
    print(error)

# %% [markdown]
# What attackers do to a mean, and not to a vote: every fifth client sends its update times 50.

# %%
attack = [f"rounds={ROUNDS}", "attack=scaled", "attack.share=0.2", "attack.factor=50"]
for strategy in ("signed_mean", "fedavg"):
    run = fedsim.run(str(HERE / "signed.yaml"), [*attack, f"strategy={strategy}"], progress=False)
    print(strategy, "under attack:", f"{run.metrics['central.accuracy'][-1]:.3f}")
