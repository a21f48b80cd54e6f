"""A file store for MLflow: `mlflow ui --backend-store-uri DIR`."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.export import Exported

_LONGEST = 500
_BATCH = 500
_AT_ONCE = 100


def write(mlflow: ModuleType, run: Exported, out: Path) -> None:
    """Write one run into the experiment of its scenario; one that is there is left alone."""
    # Newer releases want a database, which the slim client cannot write, unless this is set.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    tool: Any = mlflow
    client = tool.MlflowClient(tracking_uri=out.resolve().as_uri())
    found = client.get_experiment_by_name(run.scenario)
    experiment = found.experiment_id if found else client.create_experiment(run.scenario)
    same = f"tags.\"fedsim.run\" = '{run.name}'"
    if client.search_runs([experiment], filter_string=same):
        return
    tags = {"mlflow.runName": run.name, "fedsim.run": run.name, "privacy": run.privacy[:5000]}
    made = client.create_run(experiment, tags=tags).info.run_id
    entities = tool.entities
    params = [entities.Param(key, value[:_LONGEST]) for key, value in run.config.items()]
    for start in range(0, len(params), _AT_ONCE):
        client.log_batch(made, params=params[start : start + _AT_ONCE])
    now = math.floor(1000 * time.time())
    metrics = [
        entities.Metric(name, value, now, server_round)
        for server_round, measured in run.rows()
        for name, value in measured.items()
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(made, metrics=metrics[start : start + _BATCH])
    if run.report is not None:
        client.log_artifact(made, str(run.report))
    client.set_terminated(made)
