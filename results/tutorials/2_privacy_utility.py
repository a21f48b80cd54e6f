"""A privacy-utility curve: what does accuracy cost in epsilon, for whom, under which assumption?

Cells begin with `# %%`; `python results/tutorials/2_privacy_utility.py` runs all of them.
"""

# %% [markdown]
# `privacy=user_dp` protects whole clients from whoever sees the model; the server is trusted with
# clipped updates and adds the noise. The noise is solved for from the epsilon that we ask for.

# %%
import os

import numpy as np

import fedsim
from fedsim.compare.html import write_comparison

ROUNDS = os.environ.get("TUTORIAL_ROUNDS", "40")  # tests set it to 2
EPSILONS = [2, 8, 32] if ROUNDS != "2" else [8]
COMMON = [
    f"rounds={ROUNDS}",
    "participation=bernoulli",
    "participation.rate=0.2",
    "client.epochs=1",
]
PRIVATE = ["privacy=user_dp", "privacy.delta=0.001", "privacy.clip_norm=0.3"]

# %%
plain = fedsim.run("quickstart", COMMON, progress=False)
private = [
    fedsim.run("quickstart", [*COMMON, *PRIVATE, f"privacy.epsilon={epsilon}"], progress=False)
    for epsilon in EPSILONS
]

# %% [markdown]
# An epsilon alone says nothing. Printed, a claim tells its delta, who is protected against which
# change, how clients are drawn, the accountant, who is trusted, and what is not covered.

# %%
print(private[0].privacy)

# %%
print("no privacy", f"{np.nanmax(plain.metrics['central.accuracy']):.3f}")
for run in private:
    print(f"epsilon {run.privacy.epsilon:.3g}", f"{run.metrics['central.accuracy'][-1]:.3f}")

# %% [markdown]
# The same as one page, with the Pareto front, tables for LaTeX, and the statements word for word.
# `fedsim sweep scenario=quickstart privacy=user_dp privacy.epsilon=2,8,32 'seed=range(0,5)'` does
# this with seeds, resumes after a kill, and says what choosing the best of the runs costs.

# %%
print(write_comparison([plain.path, *(run.path for run in private)]))
