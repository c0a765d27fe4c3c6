"""Every config of SigLIP plans a step, with what it says trains."""

import importlib
import re

import jax
import pytest

from configs.siglip import forkme, shapes
from trainers.plan import Plan

TINY = {"width": 12, "depth": 2, "mlp_dim": 20, "num_heads": 2}
# Config -> argument, and a regex that finds all that trains.
CONFIGS = {
  "finetune": ("", ".*"),
  "forkme": ("tune=lora", r"(img|txt)/.*/lora_\w+/[ab]"),
  "forkme, decoder": ("decoder=1,tune=image", "t|b|(img|dec)/.*"),
  "forkme, distill": ("distill=0.25", ".*"),
  "forkme, image": ("tune=image", "t|b|img/.*"),
  "forkme, softmax": ("loss=softmax,tune=image", "t|img/.*"),
  "lit_coco": ("", "t|b|txt/.*"),
  "siglip2": ("variant=siglip2_b16_naflex", ".*"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_compiles(name):
  argument, trains = CONFIGS[name]
  module = importlib.import_module(f"configs.siglip.{name.partition(',')[0]}")
  config = module.get_config(argument)
  small = {"vocab_size": 31, "text_len": 5, "num_classes": 12}
  config.model.img.update(TINY)
  config.model.txt.update(TINY | small)
  config.update(batch_size=16, res=32, max_patches=6)
  plan = Plan(config, examples_per_epoch=100)
  every = {**plan.trainable, **plan.frozen}
  assert ("b" in every) == ("softmax" not in name)
  assert set(plan.trainable) == {x for x in every if re.fullmatch(trains, x)}
  assert plan.flops_per_step > 0
  _, measured = plan.compile_step().output_shardings
  assert {"loss", "accuracy", "equal_texts"} <= measured.keys()
  assert len(plan.mesh.devices.flat) == jax.device_count() == 8


def test_the_bias_of_a_file_stays_with_the_softmax():
  given = forkme.get_config("loss=softmax,init=siglip2_b16_224")
  assert given.model.bias_init == -10.0 and given.trainable == (".*",)
  assert shapes.get_config("loss=softmax").model.bias_init is None
  assert shapes.get_config().model.bias_init == -2.71


def test_an_unknown_way_to_tune():
  with pytest.raises(ValueError, match=r'unknown tune "lti".*"lit"'):
    forkme.get_config("tune=lti")
