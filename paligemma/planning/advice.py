"""What to change in a config whose run does not fit a device."""

import re

import jax

from paligemma.planning import memory as memory_lib
from paligemma.planning.memory import GIB

# The least that trains, see configs/tuning.py; the names are those of Gemma.
LEAST = "block_inputs"  # what of models/remat.py keeps the least
_ATTENTION = r"llm/layers/(\d+/)?attn/.*"


def advise(plan, memory, usable, *, what="train"):
  """Says what would save how much, the larger part of the memory first.

  Estimates: temporaries are taken to be proportional to the batch, and to
  shrink with it as arguments do with the number of devices.

  Args:
    plan: trainers.plan.Plan.
    memory: trainers.memory.Memory of its step or decoding.
    usable: bytes of the device.
    what: "train" or "decode".

  Returns:
    List of str; empty if it fits.
  """
  if memory.peak <= usable:
    return []
  lines = [
    f"{memory.peak / GIB:.2f} GiB needed, {usable / GIB:.2f} usable: "
    f"{(memory.peak - usable) / GIB:.2f} too much"
  ]
  on_arguments = _more_devices(plan, memory, usable)
  if what == "train":
    on_arguments = _cheaper_training(plan) + on_arguments
  on_temporaries = _smaller_batch(plan, memory, usable, what)
  if memory.arguments >= memory.temporaries:
    return lines + on_arguments + on_temporaries
  return lines + on_temporaries + on_arguments


def _cheaper_training(plan):
  """Lines on what the arguments of a step are spent for."""
  config, lines = plan.config, []
  beyond = {
    name: leaf
    for name, leaf in plan.trainable.items()
    if not re.fullmatch(_ATTENTION, name)
  }
  if beyond:
    lines.append(
      f"tune=attention: {_gib(beyond):.2f} GiB more of parameters frozen, in "
      "half the memory and without gradients and optimizer state"
    )
  frozen = _gib(plan.frozen)
  if config.frozen_dtype == "float32" and frozen:
    lines.append(f"frozen_dtype=bfloat16: {frozen / 2:.2f} GiB less")
  moments = _gib(plan.state.opt_state)
  if moments > _gib(plan.trainable) / 2:
    lines.append(
      f"optimizer={config.optimizer} keeps {moments:.2f} GiB; sgd without "
      "momentum keeps nothing"
    )
  if plan.state.ema is not None:
    lines.append(f"ema_decay=None: {_gib(plan.state.ema):.2f} GiB less")
  return lines


def _more_devices(plan, memory, usable):
  data, model = plan.mesh.shape["data"], plan.mesh.shape["model"]
  devices = data * model
  if memory.temporaries < usable:
    least = memory.arguments * devices / (usable - memory.temporaries)
    count = devices
    while count < least:
      count *= 2
    return [
      f"{count} devices with the same batch on each: the parameters split "
      "over them (sharding fsdp) leave enough"
    ] * (count > devices)
  return [f"more than {devices} devices, with fewer examples on each"]


def _smaller_batch(plan, memory, usable, what):
  config, data = plan.config, plan.mesh.shape["data"]
  room = usable - memory.arguments - memory.outputs
  if room <= 0:
    return ["no smaller batch is enough: the arguments alone do not fit"]
  lines, policies = [], (config.model.img, config.model.llm)
  rows = config.batch_size // data
  if what == "train":
    if any(p.get("remat_policy") != LEAST for p in policies):
      lines.append(
        f"remat_policy={LEAST} in model.img and model.llm: keeps the least of "
        "each layer"
      )
    for parts in range(2, rows // config.accumulate_steps + 1):
      steps = parts * config.accumulate_steps
      if rows % steps == 0 and memory.temporaries / parts <= room:
        lines.append(f"accumulate_steps={steps}: the same batch in turns")
        break
  fitting = int(rows * room / memory.temporaries)
  if fitting:
    lines.append(f"batch_size={fitting * data}, about; see --largest_batch")
  else:
    lines.append("one example on each device is too much: smaller res")
  return lines


def _gib(leaves):
  return sum(map(memory_lib.bytes_per_device, jax.tree.leaves(leaves))) / GIB
