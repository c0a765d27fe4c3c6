"""Which parameters a half-precision copy of the model keeps in float32."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from paligemma import parameters


def storage_dtypes(names: Iterable[str], dtype: Any) -> dict[str, Any]:
  """In which dtype each parameter is kept when the matrices are in `dtype`.

  Args:
    names: names of parameters.
    dtype: "float32", "bfloat16" or "float16".

  Returns:
    name -> np.dtype: float32 for what parameters.stays_float32 names, `dtype`
    for all the rest.
  """
  return {
    name: jnp.dtype("float32" if parameters.stays_float32(name) else dtype)
    for name in names
  }
