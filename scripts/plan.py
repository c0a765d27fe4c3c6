"""Plans a run for devices that need not be there; reads no data, no weights.

    python -m scripts.plan --topology v5e:4x4 --batch_size 64 --config \
      configs/transfers/forkme.py:variant=paligemma_3b,res=224

Compiles the train step (or --what decode) of a config ahead of time and prints
what it needs: memory of each device, FLOPs, bytes of every collective, which
devices it fits, and what to change if it does not fit. It also prints how fast
the program can be at best (paligemma/planning/roofline.py): the time of every
kind of operation, if each takes its FLOPs at the chip's peak or its bytes at
the chip's bandwidth, whichever is longer.

With --topology the compiler is that of TPUs (pip install -e ".[plan]") or of
NVIDIA GPUs, on any machine; without, that of the local devices. The compiler of
GPUs is a part of JAX that is installed apart, because JAX would take it for a
GPU: into ~/.cache/paligemma/gpu_compiler, or the folder that the environment
variable PALIGEMMA_GPU_COMPILER names. A command without it says how.

--largest_batch searches the largest batch that fits the chip, in a few
compilations. With --json the last line is one object.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from paligemma import init, messages, quantization
from paligemma.planning import (
  advice,
  chips,
  collectives,
  flops,
  largest_batch,
  memory,
  roofline,
  topologies,
)
from paligemma.planning.memory import GIB
from paligemma.training import sharding
from trainers import command_line, fitting
from trainers.plan import Plan

# What lets libtpu compile on a machine without a TPU, beside other compilers.
WITHOUT_A_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
GPU_COMPILER = pathlib.Path(
  os.environ.get("PALIGEMMA_GPU_COMPILER", "~/.cache/paligemma/gpu_compiler")
).expanduser()
# The schedule does not change what a step needs, so any size of data will do.
_EXAMPLES = 1_000_000
_SUMMARY = """\
{what}, batch {batch_size}, on {topology} ({mesh}), {verb} in {seconds:.0f} s
memory of each device: {peak_gib_per_device:.3f} GiB \
(arguments {argument_gib:.3f}, temporaries {temp_gib:.3f}, \
new outputs {output_gib:.3f}; program {program_gib:.3f} more)
FLOPs: {flops_per_step:.4g} on all devices"""


def with_batch_size(config: ConfigDict, batch_size: int) -> ConfigDict:
  """A copy of a config with another batch size."""
  changed = config.copy_and_resolve_references()
  changed.batch_size = batch_size
  return changed


def with_storage(
  config: ConfigDict, dtype: str | None, quantize: str | None
) -> ConfigDict:
  """A copy of a config that computes and keeps frozen weights otherwise.

  Args:
    config: of a run.
    dtype: of the products, and of frozen weights that are not quantized; None
      leaves both as they are.
    quantize: one of quantization.KINDS, for the frozen weights; None likewise.
  """
  changed = config.copy_and_resolve_references()
  if dtype:
    changed.model.dtype = dtype
    if changed.frozen_dtype not in quantization.KINDS:
      changed.frozen_dtype = dtype
  if quantize:
    changed.frozen_dtype = quantize
  return changed


def measure(
  config: ConfigDict,
  *,
  devices: Sequence[Any] | None = None,
  chip: chips.Chip | None = None,
  usable: float | None = None,
  what: str = "train",
  max_decode_len: int = 128,
) -> tuple[Plan, memory.Memory, dict[str, Any]]:
  """Compiles a program and reads off what it needs.

  Args:
    config: as for trainers.plan.Plan, which raises if its values do not fit.
    devices: those of topologies.devices. Default: the local ones.
    chip: what they are, for the roofline; default, without one.
    usable: bytes of each device; the step is the fastest that fits, see
      trainers/fitting.py. Default: that which needs least.
    what: "train" or "decode".
    max_decode_len: tokens, for "decode".

  Returns:
    Tuple of the Plan, the Memory, and the figures. A program that the compiler
    refuses, as it exceeds the device, has its Memory from the message and no
    collectives.
  """
  plan = Plan(config, devices=devices, examples_per_epoch=_EXAMPLES)
  start, texts, tried = time.perf_counter(), {}, []
  try:
    if what == "train":

      def compile_step(plan):
        compiled, texts[plan.layout] = _compile(plan.compile_step, devices)
        return compiled

      plan, compiled, tried = fitting.fit(plan, usable, compile_step)
      hlo = texts[plan.layout]
    else:
      compile_it = functools.partial(plan.compile_decode, max_decode_len)
      compiled, hlo = _compile(compile_it, devices)
    needed = memory.of(compiled)
  except jax.errors.JaxRuntimeError as error:
    if (wanted := memory.wanted(error)) is None:
      raise
    needed, hlo = None, None
  params = {**plan.trainable, **plan.frozen}
  if what == "train":
    count, needs = plan.flops_per_step, plan.count_flops(0)
    arguments = plan.step_arguments()
  else:
    arguments = plan.decode_arguments()
    sizes = {key: config[key] for key in ("batch_size", "res", "text_len")}
    sizes["max_decode_len"] = max_decode_len
    shapes = init.shapes(plan.model, config.res)
    count = needs = flops.decode(plan.model, shapes, **sizes)
  if needed is None:
    given = sum(map(memory.bytes_per_device, jax.tree.leaves(arguments)))
    needed = memory.Memory(given, max(int(wanted) - given, 0))
  figures = {
    "what": what,
    "batch_size": config.batch_size,
    "devices": plan.mesh.size,
    "mesh": dict(plan.mesh.shape),
    "compiled": hlo is not None,
    "seconds": time.perf_counter() - start,
    "argument_gib": needed.arguments / GIB,
    "temp_gib": needed.temporaries / GIB,
    "output_gib": needed.outputs / GIB,
    "program_gib": needed.program / GIB,
    "peak_gib_per_device": needed.peak / GIB,
    "flops_per_step": count,
    "collective_bytes": None,
    "parameter_gather_bytes": None,
    "synchronous_gathers": None,
    "scatters_as_all_reduce_bytes": None,
    "layout": dataclasses.asdict(plan.layout) if what == "train" else None,
    "layouts_tried": [
      dataclasses.asdict(found.layout)
      | {
        "peak_gib": found.peak / GIB,
        "is_peak_known": found.compiled,
        "roofline_ms": _milliseconds(texts.get(found.layout), chip),
        "verdict": found.verdict,
      }
      for found in tried
    ],
    "fits": memory.fits(needed.peak),
  }
  if hlo is not None:
    found = collectives.find(hlo)
    gathered = collectives.parameter_bytes(found, params)
    figures["collective_bytes"] = collectives.bytes_by_kind(found)
    figures["parameter_gather_bytes"] = gathered
    figures["synchronous_gathers"] = collectives.synchronous_gathers(found)
    scattered = collectives.scatters_as_all_reduce(found)
    figures["scatters_as_all_reduce_bytes"] = scattered
  if hlo is not None and chip is not None:
    bound = roofline.analyse(hlo, chip)
    peak = chip.flops * plan.mesh.size
    figures |= {
      "flops_needed": needs,
      "flops_executed": bound.flops * plan.mesh.size,
      "roofline_ms": bound.seconds * 1e3,
      "mfu_bound": needs / peak / bound.seconds,
      "bytes_moved": bound.num_bytes,
      "float32_products_backward": bound.float32_products_backward,
      "operations": {
        label: {"ms": seconds * 1e3, "tflop": flops / 1e12, "gb": moved / 1e9}
        for label, (seconds, flops, moved) in bound.by_label().items()
      },
    }
    if what == "decode":
      figures["bytes_per_token"] = bound.bytes_per_token
      figures["bytes_per_token_needed"] = roofline.needed_per_token(
        plan.model,
        arguments[0],
        batch_size=config.batch_size // plan.mesh.shape["data"],
        length=_prompt_length(plan) + max_decode_len // 2,
      )
  return plan, needed, figures


def _milliseconds(hlo, chip):
  """The roofline of a program, None without it or its chip."""
  if hlo is None or chip is None:
    return None
  return roofline.analyse(hlo, chip).seconds * 1e3


def _compile(compile_it, devices):
  """What is compiled, and its optimized HLO."""
  with tempfile.TemporaryDirectory() as folder:
    # Not compiled.as_text(): jaxlib cannot read all that libtpu writes.
    options = dict(xla_dump_to=folder, xla_dump_hlo_as_text=True)
    if devices is not None and devices[0].platform == "gpu":
      options |= topologies.GPU_OPTIONS
    compiled = compile_it(**options)
    (text,) = pathlib.Path(folder).glob("*.jit_*after_optimizations.txt")
    return compiled, text.read_text()


def _prompt_length(plan):
  config, img = plan.config, plan.model.img
  patches = 0 if img is None else (config.res // img.patch_size) ** 2
  return patches + config.text_len


def measure_largest(
  config: ConfigDict,
  limit: float,
  *,
  devices: Sequence[Any] | None = None,
  say: Callable[[str], Any] = print,
  **how: Any,
) -> tuple[Plan, memory.Memory, dict[str, Any]]:
  """As `measure`, for the largest batch whose peak is at most so many bytes.

  The search starts at the config's batch size, and says a line about every
  compilation. `largest_batch` is among the figures: 0 if none fits, and then
  the rest is about the smallest.
  """
  mesh = sharding.make_mesh(**config.mesh, devices=devices)
  tried = {}

  def peak(batch_size):
    changed = with_batch_size(config, batch_size)
    tried[batch_size] = measure(changed, devices=devices, **how)
    _, needed, figures = tried[batch_size]
    verdict = "fits" if needed.peak <= limit else "does not fit"
    say(
      f"batch {batch_size}: {needed.peak / GIB:.3f} GiB, {verdict} "
      f"({figures['seconds']:.0f} s)"
    )
    return needed.peak

  found = largest_batch.search(
    peak,
    limit,
    multiple=mesh.shape["data"] * config.accumulate_steps,
    start=config.batch_size,
  )
  plan, needed, figures = tried[found or min(tried)]
  return plan, needed, {**figures, "largest_batch": found}


def describe(figures: Mapping[str, Any]) -> str:
  """The figures as lines."""
  mesh = " x ".join(f"{size} {axis}" for axis, size in figures["mesh"].items())
  verb = "compiled" if figures["compiled"] else "refused"
  summary = _SUMMARY.format(**figures | {"mesh": mesh, "verb": verb})
  lines = [*_describe_layouts(figures), *summary.splitlines()]
  if figures["compiled"]:
    sent = [
      f"{kind} {count / GIB:.3f} GiB"
      for kind, count in figures["collective_bytes"].items()
      if count
    ]
    lines.append(f"collectives of each device: {', '.join(sent) or 'none'}")
  if gathered := figures["parameter_gather_bytes"]:
    gathered = f"{gathered / GIB:.3f} GiB"
    lines.append(f"  of which all-gather of parameters: {gathered}")
  if waits := figures["synchronous_gathers"]:
    lines.append(f"  the step waits for {waits} of the all-gathers")
  if scattered := figures["scatters_as_all_reduce_bytes"]:
    lines.append(
      f"  {scattered / GIB:.3f} GiB of all-reduce are reduce-scatters that the "
      "compiler does not do as such"
    )
  if "roofline_ms" in figures:
    lines += _describe_roofline(figures)
  for fits, verdict in ((True, "fits"), (False, "too much for")):
    names = [
      f"{name} ({chips.CHIPS[name].usable_gib} GiB)"
      for name, found in figures["fits"].items()
      if found == fits
    ]
    lines += [f"{verdict} {', '.join(names)}"] * bool(names)
  device = figures["device"]
  lines.append(f"  compiled for {device}; for other devices an estimate")
  lines += [f"to change: {line}" for line in figures["advice"]]
  if "largest_batch" in figures:
    lines.append(f"largest batch that fits: {figures['largest_batch']}")
  return "\n".join(lines)


def _describe_layouts(figures):
  """A table of the choices, the fastest first, up to the one that is taken."""
  tried = figures["layouts_tried"]
  if tried and all(found["verdict"] != "taken" for found in tried):
    last = {
      "peak_gib": figures["peak_gib_per_device"],
      "is_peak_known": True,
      "roofline_ms": figures.get("roofline_ms"),
      "verdict": "taken, as it needs least",
    }
    tried = [*tried, figures["layout"] | last]
  rows = [("remat_policy", "frozen_sharding", "peak, GiB", "ms at best", "")]
  for found in tried:
    least = "" if found["is_peak_known"] else "at least "
    best = found["roofline_ms"]
    rows.append(
      (
        found["remat_policy"],
        found["frozen_sharding"],
        f"{least}{found['peak_gib']:.2f}",
        "" if best is None else f"{best:.1f}",
        found["verdict"],
      )
    )
  return messages.aligned(rows) if tried else []


def _describe_roofline(figures):
  moved = figures["bytes_moved"] / 1e9
  yield f"at best: {figures['roofline_ms']:.2f} ms, {moved:.3f} GB moved"
  if figures["what"] == "decode":
    moved, needed = (
      figures["bytes_per_token"],
      figures["bytes_per_token_needed"],
    )
    yield (
      f"a token: {moved / 1e9:.3f} GB, {moved / needed:.2f} times the "
      f"{needed / 1e9:.3f} GB of weights and cache"
    )
  else:
    yield (
      f"MFU at best: {100 * figures['mfu_bound']:.1f} %; "
      f"{figures['flops_executed']:.4g} FLOPs executed, "
      f"{figures['flops_executed'] / figures['flops_needed']:.2f} times those "
      "needed, without logits"
    )
    count = figures["float32_products_backward"]
    yield f"float32 products in the backward pass: {count}"
  rows = [("operations", "ms", "TFLOP", "GB")]
  for label, found in figures["operations"].items():
    if found["ms"] >= figures["roofline_ms"] / 1000:
      values = (found[unit] for unit in ("ms", "tflop", "gb"))
      rows.append((label, *(f"{value:10.3f}" for value in values)))
  yield from (f"  {line}" for line in messages.aligned(rows))


def plan_command(
  config: ConfigDict,
  *,
  topology_name: str | None = None,
  batch_size: int | None = None,
  find_largest: bool = False,
  say: Callable[[str], Any] = print,
  **how: Any,
) -> dict[str, Any]:
  """All figures of one command line, as --json prints them."""
  config = with_batch_size(config, batch_size or config.batch_size)
  if topology_name is None:
    devices, device = None, jax.devices()[0].device_kind
    usable = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    how["chip"] = chips.of_kind(device)
  else:
    devices, device = devices_of(topology_name), topology_name.split(":")[0]
    how["chip"] = chips.CHIPS[device]
    usable = chips.CHIPS[device].usable_gib * GIB
  how["devices"] = devices
  if not find_largest:
    plan, needed, figures = measure(config, usable=usable, **how)
  elif usable is None:
    raise ValueError(
      f"--largest_batch: a {device} has no memory of its own; give a --topology"
    )
  else:
    plan, needed, figures = measure_largest(config, usable, say=say, **how)
  if usable is None:  # a CPU: advice for the largest device it does not fit
    missed = [n for n, fits in figures["fits"].items() if not fits]
    usable = max(
      (chips.CHIPS[n].usable_gib * GIB for n in missed), default=math.inf
    )

  def peak_with(policies):
    changed = plan.config.copy_and_resolve_references()
    for tower, policy in policies.items():
      changed.model[tower].remat_policy = policy
    return measure(changed, **how)[1].peak

  what = figures["what"]
  search = peak_with if what == "train" else None
  lines = advice.advise(plan, needed, usable, what=what, peak_with=search)
  topology = {"topology": topology_name or "local", "device": device}
  return {**topology, **figures, "advice": lines}


def devices_of(topology_name: str) -> Sequence[Any]:
  """Devices of a topology, which need not be there."""
  jax.config.update("jax_platforms", "cpu")  # leave a TPU to others
  for name, value in WITHOUT_A_TPU.items():
    os.environ.setdefault(name, value)
  return topologies.devices(topology_name, GPU_COMPILER)


def _positive(text):
  if (value := int(text)) < 1:
    raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
  return value


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument(
    "--topology",
    help="v5e:4x4, h200, h200:1x1x8, ...; default: the local devices",
  )
  parser.add_argument("--what", default="train", choices=("train", "decode"))
  parser.add_argument(
    "--batch_size", type=_positive, help="in the place of the config's"
  )
  parser.add_argument(
    "--dtype",
    choices=("bfloat16", "float16", "float32"),
    help="in the place of the config's",
  )
  parser.add_argument(
    "--quantize",
    choices=quantization.KINDS,
    help="the frozen weights; for --what decode all weights",
  )
  command_line.add_switch(
    parser, "largest_batch", "search the largest batch that fits"
  )
  parser.add_argument(
    "--max_decode_len",
    type=_positive,
    default=128,
    help="tokens to decode, for --what decode",
  )
  command_line.add_switch(parser, "json", "end with one JSON object")
  args, config = command_line.parse(parser)
  figures = plan_command(
    with_storage(config, args.dtype, args.quantize),
    topology_name=args.topology,
    batch_size=args.batch_size,
    find_largest=args.largest_batch,
    what=args.what,
    max_decode_len=args.max_decode_len,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )
  print(describe(figures))
  if args.json:
    print(json.dumps(figures))


if __name__ == "__main__":
  command_line.run(main)
