"""forkme with a model and a data set so small that a step takes milliseconds.

python -m trainers.train --config tests/trainers/tiny_config.py:argument
"""

from configs.transfers import forkme


def get_config(argument=None):
  """All of forkme's arguments, and its values in float32 on a tiny model."""
  config = forkme.get_config(
    ",".join(
      [
        "variant=paligemma_tiny,res=28,text_len=19,batch_size=8,epochs=5",
        argument or "",
      ]
    )
  )
  config.model.dtype = "float32"
  # Sizes that differ, so that no swapped axis hides; heads divide by 2, for the
  # "model" axis of a mesh.
  config.model.img.update(
    width=12, depth=2, mlp_dim=20, num_heads=2, remat_policy="none"
  )
  config.model.llm.update(
    width=16,
    depth=2,
    mlp_dim=22,
    num_heads=2,
    num_kv_heads=1,
    head_dim=10,
    remat_policy="none",
  )
  if config.model.variant.startswith("paligemma2"):
    config.model.llm.update(num_heads=4, num_kv_heads=2)
  if config.frozen_dtype == "bfloat16":
    config.frozen_dtype = "float32"
  config.optimizer, config.learning_rate = "sgd", 0.03
  config.log_steps = 1
  config.evals.val.max_decode_len = 3
  return config
