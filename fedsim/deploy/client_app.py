"""The `ClientApp` of every deployed scenario: what to do comes with the run's configuration.

A SuperNode starts a process for each message, so nothing is imported here that a message may not
need. The node's configuration says which client it is and, for data of its own, where that is:

    flower-supernode ... --node-config 'partition-id=0 data.root="/srv/data"'
"""

from __future__ import annotations

from flwr.app import Context

from fedsim.client.app import make_client_app
from fedsim.client.runtime import ClientRuntime
from fedsim.engines import recipe

_FLOWERS = ("partition-id", "num-partitions")


def _find(context: Context) -> ClientRuntime:
    own = {key: value for key, value in context.node_config.items() if key not in _FLOWERS}
    return recipe.runtime(str(context.run_config["scenario"]), tuple(sorted(own.items())))


app = make_client_app(_find, zero_copy=False)
