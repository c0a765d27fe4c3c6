"""configs/siglip/shapes.py with towers so small that a step takes moments.

python -m trainers.train --config tests/trainers/tasks/siglip_config.py:argument
"""

from configs.siglip import shapes


def get_config(argument=None):
  """All of forkme's arguments."""
  config = shapes.get_config(f"batch_size=8,{argument or ''}")
  tower = dict(width=12, depth=1, mlp_dim=20, num_heads=2)
  config.model.img.update(tower)
  config.model.txt.update(tower, num_classes=12)
  config.log_steps = 1
  return config
