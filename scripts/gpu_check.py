"""Measures on one GPU what the docs state; one JSON line for each check.

    bash scripts/gpu_check.sh            # all checks of this GPU, in 8 minutes
    python -m scripts.gpu_check train_224 decode_1
    python -m scripts.gpu_check --dry_run

Weights, pixels and texts are random. Every check belongs into a process of its
own, as memory's peak is that of the process; gpu_check.sh sees to it. A GPU of
less than 20 GiB has smaller checks of the same names. --dry_run runs all of
them with a tiny model, on any device.

attention_*: of a layer at 896 pixels, forward and backward: milliseconds of our
kernel and in chunks, and how far apart the two are, relative to the largest.
train_*: milliseconds of a step, and the share of the peak FLOPs (mfu).
decode_*: milliseconds of a token after the first, and the bytes that it must
read a second, beside the bandwidth of the data sheet.
All: the peak of memory beside what was planned, and the program's roofline.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp

from paligemma import tree
from paligemma.decoding import decode
from paligemma.models import device as device_lib
from paligemma.models.attention import masks
from paligemma.models.attention import reference as attention
from paligemma.planning import chips, memory, roofline
from paligemma.planning.memory import GIB
from paligemma.training import sharding
from scripts.benchmarks import subject
from trainers import command_line, compilation_cache, fitting, gpu_memory, state
from trainers.plan import Plan

_SMALL_GIB = 20
_TINY = "variant=paligemma_tiny,res=28,text_len=24,batch_size=8"
_NEVER = -1  # an id that no token has: every answer goes on to the end


@dataclasses.dataclass(frozen=True)
class Check:
  """One measurement.

  Attributes:
    arguments: of configs/transfers/forkme.py, beside the variant.
    attention: examples, tokens, query heads, key/value heads and head dim; the
      last eighth of the tokens is causal. None trains or decodes.
    new_tokens: to decode; 0 trains.
    frozen_dtype: of the weights, if not that of the config.
    cap_gib: memory that the process may take; None: nearly all.
  """

  arguments: str = ""
  attention: tuple[int, int, int, int, int] | None = None
  new_tokens: int = 0
  frozen_dtype: str | None = None
  cap_gib: float | None = None


_DECODE = "res=224,text_len=128,batch_size"
_QLORA = "text_len=128,tune=qlora_int4,dtype=float16"
LARGE = {
  "attention_decoder": Check(attention=(8, 4608, 8, 1, 256)),
  "attention_image": Check(attention=(8, 4096, 16, 16, 72)),
  "train_224": Check("res=224,text_len=128,batch_size=64"),
  "decode_1": Check(f"{_DECODE}=1", new_tokens=128),
  "decode_32": Check(f"{_DECODE}=32", new_tokens=128),
  "train_float16": Check("res=224,text_len=128,batch_size=64,dtype=float16"),
  "cap_15_gib": Check(f"{_QLORA},res=224,batch_size=8", cap_gib=15),
  "decode_1_int8": Check(f"{_DECODE}=1", new_tokens=128, frozen_dtype="int8"),
  "train_896": Check("res=896,text_len=512,batch_size=8"),
  "train_448": Check("res=448,text_len=128,batch_size=16"),
  "decode_256": Check(f"{_DECODE}=256", new_tokens=128),
}
_SERVED = f"dtype=float16,{_DECODE}"
SMALL = {
  "train_224": Check(f"{_QLORA},res=224,batch_size=8"),
  "decode_1": Check(f"{_SERVED}=1", new_tokens=64),
  "decode_32": Check(f"{_SERVED}=32", new_tokens=64),
  "decode_1_int8": Check(f"{_SERVED}=1", new_tokens=64, frozen_dtype="int8"),
  "train_448": Check(f"{_QLORA},res=448,batch_size=8"),
}


def measure(check: Check, *, dry_run: bool = False) -> dict[str, Any]:
  """What one check finds; `dry_run` takes a tiny model and one repetition."""
  device, runs = jax.local_devices()[0], 1 if dry_run else 10
  about = {"device": device.device_kind, "jax": jax.__version__}
  if check.attention:
    sizes = (2, 40, 2, 1, 16) if dry_run else check.attention
    return about | _measure_attention(sizes, runs)
  arguments = f"variant=paligemma_3b,{check.arguments}"
  new_tokens = check.new_tokens
  if dry_run:
    arguments, new_tokens = f"{arguments},{_TINY}", min(new_tokens, 3)
  config = command_line.load_config(f"configs/transfers/forkme.py:{arguments}")
  config.frozen_dtype = check.frozen_dtype or config.frozen_dtype
  plan = Plan(config, examples_per_epoch=config.batch_size)
  if new_tokens:
    found = _measure_decoding(plan, new_tokens, runs)
  else:
    found = _measure_training(plan, runs)
  peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
  return about | {
    "arguments": arguments,
    "frozen_dtype": config.frozen_dtype,
    **found,
    "peak_gib": peak and peak / GIB,
  }


def _measure_attention(sizes, runs):
  batch, length, heads, kv_heads, head_dim = sizes
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, weights = (
    jax.random.normal(key, (batch, length, n, head_dim), jnp.bfloat16)
    for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
  )
  mask_ar = jnp.arange(length) >= length - length // 8
  mask_ar = jnp.tile(mask_ar.astype(jnp.int32), (batch, 1))
  mask = masks.make_mask(jnp.ones_like(mask_ar, bool), mask_ar)

  def measured(implementation):
    def total(q, k, v):
      out = attention.attend(
        q, k, v, mask, scale=head_dim**-0.5, implementation=implementation
      )
      return jnp.sum((out * weights).astype(jnp.float32)), out

    step = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    result, taken = jax.block_until_ready(step(q, k, v)), []
    for _ in range(runs):
      start = time.perf_counter()
      jax.block_until_ready(step(q, k, v))
      taken.append(time.perf_counter() - start)
    milliseconds = statistics.median(taken) * 1e3
    return milliseconds, [
      x.astype(jnp.float32) for x in jax.tree.leaves(result)
    ]

  kernel = "flash" if device_lib.takes_triton() else "reference"
  (flash_ms, found), (chunked_ms, expected) = map(measured, (kernel, "chunked"))
  apart = [
    jnp.abs(x - y).max() / jnp.abs(y).max()
    for x, y in zip(found, expected, strict=True)
  ]
  return {
    "sizes": sizes,
    f"{kernel}_ms": flash_ms,
    "chunked_ms": chunked_ms,
    "difference": float(jnp.max(jnp.stack(apart))),  # NaN if one is
  }


def _measure_training(plan, runs):
  config, start = plan.config, time.perf_counter()
  plan, compiled, _ = fitting.fit(
    plan, fitting.usable_bytes(), Plan.compile_step
  )
  found = _planned(plan, compiled, start)
  batch = sharding.put_batch(
    subject.batch(config, plan.model.llm.vocab_size), plan.mesh
  )
  frozen = _draw(plan.frozen)
  trained = _draw(plan.trainable)
  current = state.create_state(plan.optimizer, trained, plan.state)
  current, _ = compiled(current, frozen, batch)  # to warm up
  taken = []
  for _ in range(runs):
    start = time.perf_counter()
    current, measured = jax.block_until_ready(compiled(current, frozen, batch))
    taken.append(time.perf_counter() - start)
  seconds = statistics.median(taken)
  supervised = config.batch_size * (config.text_len - subject.PREFIX)
  return found | {
    "step_ms": seconds * 1e3,
    "step_ms_range": [min(taken) * 1e3, max(taken) * 1e3],
    "mfu": _share(plan.count_flops(supervised) / seconds, "flops", plan),
    "measured": {name: float(value) for name, value in measured.items()},
  }


def _measure_decoding(plan, new_tokens, runs):
  config, abstract = plan.config, plan.decode_arguments()[0]
  start = time.perf_counter()
  found = _planned(plan, plan.compile_decode(new_tokens), start)
  params = tree.unflatten(_draw(abstract))
  batch = subject.prompts(subject.batch(config, plan.model.llm.vocab_size))

  def seconds(count):
    answer = functools.partial(
      decode.generate, plan.served_model, params, batch, max_decode_len=count
    )
    taken = []
    for _ in range(min(runs, 3) + 1):  # the first compiles
      start = time.perf_counter()
      jax.block_until_ready(answer(eos_id=_NEVER))
      taken.append(time.perf_counter() - start)
    return min(taken[1:])

  first = seconds(1)
  token = (seconds(new_tokens) - first) / (new_tokens - 1)
  rate = (
    roofline.needed_per_token(
      plan.model,
      abstract,
      batch_size=config.batch_size // plan.mesh.shape["data"],
      length=(config.res // plan.model.img.patch_size) ** 2
      + subject.PREFIX
      + new_tokens // 2,
    )
    / token
  )
  return found | {
    "first_token_ms": first * 1e3,
    "token_ms": token * 1e3,
    "needed_bytes_per_s": rate,
    "bandwidth_share": _share(rate * plan.mesh.size, "bandwidth", plan),
  }


def _planned(plan, compiled, start):
  """What the compiled program needs, and can do at best."""
  chip = chips.of_kind(jax.local_devices()[0].device_kind)
  found = {
    "compile_s": time.perf_counter() - start,
    "planned_peak_gib": memory.of(compiled).peak / GIB,
  }
  if chip is not None:
    bound = roofline.analyse(compiled.as_text(), chip)
    found["roofline_ms"] = bound.seconds * 1e3
    found["bytes_per_token"] = bound.bytes_per_token
  return found


def _share(rate, peak, plan):
  chip = chips.of_kind(jax.local_devices()[0].device_kind)
  return chip and rate / (getattr(chip, peak) * plan.mesh.size)


def _draw(abstract):
  """Random arrays, one after the other: memory's peak is not theirs."""
  return {
    name: _array(leaf.shape, leaf.dtype, leaf.sharding, seed)
    for seed, (name, leaf) in enumerate(abstract.items())
  }


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _array(shape, dtype, place, seed):
  bits = jax.random.bits(jax.random.key(seed), shape, jnp.uint8)
  if not jnp.issubdtype(dtype, jnp.floating):
    return jax.lax.with_sharding_constraint(bits.astype(dtype), place)
  values = (bits.astype(jnp.float32) - 127.5) / 2**13  # within 0.016 of 0
  return jax.lax.with_sharding_constraint(values.astype(dtype), place)


def _gpu_gib():
  """Memory of the first GPU without starting JAX, None without one."""
  try:
    found = subprocess.run(
      ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,nounits"],
      capture_output=True,
      check=True,
      text=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return float(found.stdout.split()[-1]) / 1024


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("checks", nargs="*", help="default: all")
  command_line.add_switch(parser, "list", "print the names of the checks")
  command_line.add_switch(parser, "dry_run", "a tiny model, on any device")
  args = parser.parse_args()
  gib = _gpu_gib()
  if gib is None and not args.dry_run:
    raise ValueError("no GPU found (nvidia-smi); --dry_run needs none")
  checks = SMALL if gib is not None and gib < _SMALL_GIB else LARGE
  if unknown := set(args.checks) - checks.keys():
    raise ValueError(
      f"unknown checks {', '.join(sorted(unknown))}, expected some of "
      f"{', '.join(checks)}"
    )
  if args.list:
    print("\n".join(checks))
    return
  for name in args.checks or checks:
    check = checks[name]
    if gib is not None and check.cap_gib is not None:
      share = str(check.cap_gib / gib)
      os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = share
    gpu_memory.configure()
    compilation_cache.configure(compilation_cache.FOLDER)
    found = measure(check, dry_run=args.dry_run)
    print(json.dumps({"check": name, **found}), flush=True)


if __name__ == "__main__":
  command_line.run(main)
