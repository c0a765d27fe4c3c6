"""Which parameters a half-precision copy of the model keeps in float32."""

import re

import jax.numpy as jnp

from paligemma.lora import config as lora_config

# In bfloat16 the patch and position embeddings alone shift image tokens by up
# to 0.4; norms, biases and adapters are too small for it to save anything.
ALWAYS_FLOAT32 = (
  lora_config.PARAMETERS,
  r"(.*/)?embedding/(kernel|bias)",
  r"(.*/)?(pos_embedding|cls|probe|scale|bias)",
)


def storage_dtypes(names, dtype):
  """In which dtype each parameter is kept when the matrices are in `dtype`.

  Args:
    names: names of parameters.
    dtype: "float32", "bfloat16" or "float16".

  Returns:
    name -> np.dtype: float32 for patch and position embeddings, norm scales and
    biases, `dtype` for all the rest.
  """

  # Not tree.match_first: one tower alone need not match every regex.
  def storage(name):
    keep = any(re.fullmatch(regex, name) for regex in ALWAYS_FLOAT32)
    return jnp.dtype("float32" if keep else dtype)

  return {name: storage(name) for name in names}
