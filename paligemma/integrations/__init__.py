"""PaliGemma as a model of other programs, one module for each.

What they load to find it is here, and imports no JAX.
"""

from typing import Any


def lmms_eval_models() -> Any:
  """The entry point of lmms-eval's group "lmms_eval.models"."""
  from lmms_eval.models import registry_v2

  return registry_v2.ModelManifest(
    model_id="paligemma",
    simple_class_path="paligemma.integrations.lmms_eval.PaliGemma",
  )
