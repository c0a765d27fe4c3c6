"""What to change in a config whose run does not fit a device."""

import re
from collections.abc import Callable
from typing import Any

import jax

from paligemma import parameters
from paligemma.planning import memory as memory_lib
from paligemma.planning.memory import GIB


def advise(
  plan: Any,
  memory: memory_lib.Memory,
  usable: float,
  *,
  what: str = "train",
  peak_with: Callable[[dict[str, str]], float] | None = None,
) -> list[str]:
  """Says what would save how much memory, the larger part of it first.

  Estimates: temporaries are taken to be proportional to the batch, and
  arguments to shrink with the number of devices. What another remat_policy
  saves does not follow from sizes: "block_inputs" also holds all matrices in
  the compute dtype. So it is compiled, and advised if its peak is lower.

  Args:
    plan: trainers.plan.Plan.
    memory: Of its step or decoding.
    usable: Bytes of the device.
    what: "train" or "decode".
    peak_with: Function of {tower: remat_policy} that returns the peak in bytes
      of the same step with them. Default: no advice on policies.

  Returns:
    Lines for people; none if it fits.
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
  if peak_with is not None:
    on_temporaries = _keeping_less(plan, memory, peak_with) + on_temporaries
  if memory.arguments >= memory.temporaries:
    return lines + on_arguments + on_temporaries
  return lines + on_temporaries + on_arguments


def _cheaper_training(plan):
  """Lists how the arguments of a train step could take less memory."""
  config, lines = plan.config, []
  beyond = {
    name: leaf
    for name, leaf in plan.trainable.items()
    if not re.fullmatch(parameters.ATTENTION, name)
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
  devices = plan.mesh.size
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


def _keeping_less(plan, memory, peak_with):
  """Advises another remat_policy, if a step compiled with it needs less."""
  changed = {
    name: "block_inputs"
    for name, tower in plan.model.towers.items()
    if tower.remat_policy == "none"
  }
  less = memory.peak - peak_with(changed) if changed else 0
  if less <= 0:
    return []
  where = " and ".join(f"model.{tower}" for tower in changed)
  return [f"remat_policy=block_inputs in {where}: {less / GIB:.2f} GiB less"]


def _smaller_batch(plan, memory, usable, what):
  config, data = plan.config, plan.mesh.shape["data"]
  room = usable - memory.arguments - memory.outputs
  if room <= 0:
    return ["no smaller batch is enough: the arguments alone do not fit"]
  lines = []
  examples = config.batch_size // data  # of each device
  if what == "train":
    for times in range(2, examples // config.accumulate_steps + 1):
      steps = times * config.accumulate_steps
      if examples % steps == 0 and memory.temporaries / times <= room:
        lines.append(f"accumulate_steps={steps}: the same batch in turns")
        break
  fitting = int(examples * room / memory.temporaries)
  if fitting:
    lines.append(f"batch_size={fitting * data}, about; see --largest_batch")
  else:
    lines.append("one example on each device is too much: smaller res")
  return lines


def _gib(leaves):
  return sum(map(memory_lib.bytes_per_device, jax.tree.leaves(leaves))) / GIB
