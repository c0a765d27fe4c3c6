"""Which parameters a half-precision copy of the model keeps in float32."""

import jax.numpy as jnp

from paligemma import tree

# In bfloat16 the patch and position embeddings alone shift image tokens by up
# to 0.4; norms and biases are too small for it to save anything.
ALWAYS_FLOAT32 = (
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
  dtype = jnp.dtype(dtype)
  float32 = jnp.dtype("float32")
  rules = [(regex, float32) for regex in ALWAYS_FLOAT32]
  return tree.match_first(rules, names, default=dtype)
