"""MLflow: one run, which every start of ours continues.

MLFLOW_TRACKING_URI names the server or database, by default mlflow.db in the
working directory, and MLFLOW_EXPERIMENT_NAME the experiment.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from paligemma import disk
from paligemma.evals.annotated import Sample

_ID = "mlflow.id"


class Mlflow:
  """Uses the client, which keeps no run active for the whole process."""

  def __init__(
    self, folder: epath.Path, first_step: int, about: Mapping[str, Any]
  ):
    import mlflow

    del first_step
    self._entities = mlflow.entities
    self._client = client = mlflow.MlflowClient()
    path = folder / _ID
    if path.exists():
      self._run = path.read_text().strip()
      client.update_run(self._run, status="RUNNING")
    else:
      name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "paligemma")
      found = client.get_experiment_by_name(name)
      experiment = (
        found.experiment_id if found else client.create_experiment(name)
      )
      made = client.create_run(experiment, run_name=folder.name)
      self._run = made.info.run_id
      disk.write(path, f"{self._run}\n")
    client.log_dict(self._run, dict(about), "run.json")
    self.where = f"run {self._run} at {mlflow.get_tracking_uri()}"

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    now = round(1000 * time.time())
    self._client.log_batch(
      self._run,
      metrics=[
        self._entities.Metric(_name(name), value, now, step)
        for name, value in values.items()
      ],
    )

  def samples(self, step: int, name: str, found: Sequence[Sample]) -> None:
    for sample in found:
      key = _name(f"{name}/{sample.index}")
      self._client.log_image(self._run, sample.picture, key=key, step=step)

  def close(self) -> None:
    self._client.set_terminated(self._run)


def _name(text):
  """A name that MLflow takes; ours may hold a regex of parameters."""
  return re.sub(r"[^\w\-. :/]", "_", text)
