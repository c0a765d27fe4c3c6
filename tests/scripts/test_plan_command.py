"""The planner on the local devices: no data, no tokenizer, no weights."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from paligemma.planning import chips, flops, memory, topologies
from paligemma.planning.memory import GIB
from scripts import plan as command
from trainers.plan import Plan

ROOT = pathlib.Path(__file__).parents[2]
TINY_CONFIG = ROOT / "tests/trainers/tiny_config.py"
NOT_THERE = "train=no/such.jsonl,val=no/such.jsonl,tokenizer=no/such.model"


@pytest.fixture
def config():
  spec = importlib.util.spec_from_file_location("tiny_config", TINY_CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(f"tune=decoder,{NOT_THERE}")


def tree_gib(leaves):
  return sum(map(memory.bytes_per_device, jax.tree.leaves(leaves))) / GIB


def test_a_train_step(config):
  config.sharding = (("img/.*", "replicate"), (".*", "fsdp"))
  config.accumulate_steps = 2
  found = command.plan_command(config, batch_size=16)
  plan = Plan(command.with_batch_size(config, 16), examples_per_epoch=1)
  assert found["topology"] == "local"
  assert found["batch_size"] == 16
  assert config.batch_size == 8
  assert found["mesh"] == {"data": 8, "model": 1}
  assert found["argument_gib"] == pytest.approx(
    tree_gib(plan.step_arguments()), rel=1e-3
  )
  assert found["temp_gib"] > tree_gib(plan.trainable)  # their gradients
  assert found["peak_gib_per_device"] == pytest.approx(
    found["argument_gib"] + found["temp_gib"] + found["output_gib"]
  )
  assert found["flops_per_step"] == plan.flops_per_step
  assert all(found["fits"].values())
  assert found["advice"] == []
  # The gradient of what every device has all of is summed over them.
  whole = [x for x in plan.trainable.values() if x.sharding.is_fully_replicated]
  assert found["collective_bytes"]["all-reduce"] / GIB >= tree_gib(whole)
  said = command.describe(json.loads(json.dumps(found)))
  assert said.startswith("train, batch 16, on local (8 data x 1 model), comp")
  assert "\nfits v4 (15.25 GiB), v5e (15.75 GiB), " in said
  assert "\ncollectives of each device: " in said


def test_decoding(config):
  found = command.plan_command(config, what="decode", max_decode_len=5)
  plan = Plan(config, examples_per_epoch=1)
  params = {**plan.trainable, **plan.frozen}
  assert found["what"] == "decode"
  prompts = {
    name: leaf
    for name, leaf in plan.step_arguments()[2].items()
    if name != "mask_loss"
  }
  assert found["argument_gib"] == pytest.approx(
    tree_gib((params, prompts)), rel=1e-2
  )
  assert found["flops_per_step"] == flops.decode(
    plan.model, params, batch_size=8, res=28, text_len=19, max_decode_len=5
  )


def refusing_compiler(monkeypatch, gib):
  """Refuses more than 15.75; the step needs gib(batch size, plan)."""

  def compile_step(plan, **options):
    wanted = gib(plan.config.batch_size, plan)
    if wanted > 15.75:
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on "
        "HBM, the total memory required for HLO temporaries "
        f"({wanted:.2f}G) exceeds available HBM (15.75G)."
      )
    return jax.jit(lambda x: x).lower(1.0).compile(compiler_options=options)

  def of(compiled):
    return memory.Memory(0, 0)

  monkeypatch.setattr(Plan, "compile_step", compile_step)
  monkeypatch.setattr(command.memory, "of", of)


def test_a_program_that_the_compiler_refuses(config, monkeypatch):
  refusing_compiler(monkeypatch, lambda rows, plan: 20.4)
  found = command.plan_command(config)
  assert not found["compiled"]
  assert found["peak_gib_per_device"] == pytest.approx(20.4)
  assert found["collective_bytes"] is None
  assert not found["fits"]["v5e"]
  assert not found["fits"]["t4"]
  assert found["fits"]["v5p"]
  said = command.describe(found)
  assert "refused in " in said
  assert "\nto change: 20.40 GiB needed, 15.75 usable: 4.65 too much\n" in said
  assert "\ntoo much for v4 (15.25 GiB), v5e (15.75 GiB), t4 (" in said


@pytest.mark.parametrize("gib", [18.5, 20.4])
def test_a_policy_is_advised_if_its_step_needs_less(config, monkeypatch, gib):
  def peak(rows, plan):
    assert rows == 16
    policies = {plan.model.img.remat_policy, plan.model.llm.remat_policy}
    return gib if policies == {"block_inputs"} else 20.4

  refusing_compiler(monkeypatch, peak)
  found = command.plan_command(config, batch_size=16)
  less = "remat_policy=block_inputs in model.img and model.llm: 1.90 GiB less"
  assert (less in found["advice"]) == (gib < 20)


def test_another_failure_is_none_of_the_memory(config, monkeypatch):
  def fail(plan, **options):
    raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

  monkeypatch.setattr(Plan, "compile_step", fail)
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: a fault"):
    command.plan_command(config)


def test_the_choices_are_a_table(config, monkeypatch):
  for tower in ("img", "llm"):
    config.model[tower].remat_policy = "auto"

  def needs(rows, plan):
    return 20.4 if plan.layout.remat_policy == "products" else 9.5

  refusing_compiler(monkeypatch, needs)
  devices = jax.devices()[:1]
  found = command.measure(config, usable=15 * GIB, devices=devices)[2]
  table = command.describe(
    {"topology": "local", "device": "cpu", "advice": [], **found}
  ).splitlines()[:3]
  assert [re.split("  +", line) for line in table] == [
    ["remat_policy", "frozen_sharding", "peak, GiB", "ms at best"],
    ["products", "shard", "at least 20.40", "does not fit"],
    ["block_inputs", "shard", "0.00", "taken, as it needs least"],
  ]


def test_the_largest_batch(config, monkeypatch):
  config.accumulate_steps = 3  # batches are multiples of 8 x 3
  refusing_compiler(monkeypatch, lambda rows, plan: 3 + rows / 64)
  said = []
  plan, _, found = command.measure_largest(config, 15.75 * GIB, say=said.append)
  assert found["largest_batch"] == found["batch_size"] == 816
  assert plan.config.batch_size == 816
  assert any(line.startswith("batch 840: 16.1") for line in said)
  assert "\nlargest batch that fits: 816" in command.describe(
    {"topology": "local", "device": "cpu", "advice": [], **found}
  )


def test_no_batch_fits(config, monkeypatch):
  refusing_compiler(monkeypatch, lambda rows, plan: 16 + rows)
  _, needed, found = command.measure_largest(config, 15.75 * GIB, say=str)
  assert (found["largest_batch"], found["batch_size"]) == (0, 8)
  assert needed.peak == 24 * GIB


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "scripts.plan", *arguments],
    cwd=ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2"
      " --xla_backend_optimization_level=0",
    },
    capture_output=True,
    text=True,
  )


def test_the_last_line_is_one_object():
  done = run(
    f"--config={TINY_CONFIG}:{NOT_THERE}",
    "--config.optimizer=adam",
    "--batch_size=4",
    "--json",
  )
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  found = json.loads(last)
  assert text == command.describe(found).splitlines()
  assert (found["batch_size"], found["devices"]) == (4, 2)


def test_decoding_for_a_slice_that_is_not_there():
  pytest.importorskip("libtpu")
  given = (f"--config={TINY_CONFIG}:{NOT_THERE}", "--topology=v5e:1x1")
  done = run(*given, "--what=decode", "--max_decode_len=3")
  assert done.returncode == 0, done.stderr
  said = "decode, batch 8, on v5e:1x1 (1 data x 1 model), compiled in "
  assert done.stdout.startswith(said)
  assert re.search(r"\na token: 0.00\d GB, \d+\.\d\d times the", done.stdout)


# sm75 and sm90: cuBLAS on a T4, Triton on an H200.
@pytest.mark.parametrize("topology", ["t4", "h200:1x1x2"])
def test_a_gpu_that_is_not_there(topology):
  if not (command.GPU_COMPILER / "jax_plugins").exists():
    pytest.skip(topologies.gpu_compiler_command(command.GPU_COMPILER))
  done = run(
    f"--config={TINY_CONFIG}:{NOT_THERE}",
    f"--topology={topology}",
    "--dtype=float16",
    "--json",
  )
  assert done.returncode == 0, done.stderr
  *text, last = done.stdout.splitlines()
  found = json.loads(last)
  assert text == command.describe(found).splitlines()
  assert (found["topology"], found["batch_size"]) == (topology, 8)
  # The tiny model keeps all activations, and its logits are one turn of a loop.
  assert found["flops_executed"] == pytest.approx(
    found["flops_per_step"], rel=0.1
  )
  chip, seconds = chips.CHIPS[found["device"]], found["roofline_ms"] / 1e3
  assert found["bytes_moved"] / seconds < 1.01 * chip.bandwidth
  assert 0 < found["mfu_bound"] < 1
  # Matrices so small are not split: their gradients are summed.
  sent = {kind for kind, size in found["collective_bytes"].items() if size}
  assert sent == ({"all-reduce"} if found["devices"] == 2 else set())
  assert found["float32_products_backward"] == 0


@pytest.mark.parametrize(
  ("topology", "dtype", "quantize", "most"),
  [
    ("t4", "float16", None, 1.05),
    ("t4", "float16", "int8", 1.2),
    ("t4", "float16", "int4", 1.4),
    ("h200", "bfloat16", None, 1.05),
    ("h200", "bfloat16", "int8", 1.05),
    ("h200", "bfloat16", "nf4", 1.3),
  ],
)
def test_a_token_reads_little_more_than_it_must(
  config, topology, dtype, quantize, most
):
  if not (command.GPU_COMPILER / "jax_plugins").exists():
    pytest.skip(topologies.gpu_compiler_command(command.GPU_COMPILER))
  config.model.img.num_classes = 1024
  config.model.llm.update(width=1024, mlp_dim=8192, depth=2, num_heads=4)
  config.model.llm.update(num_kv_heads=1, head_dim=256)
  config = command.with_storage(config, dtype, quantize)
  found = command.plan_command(
    config, topology_name=topology, what="decode", batch_size=1
  )
  assert 1 <= found["bytes_per_token"] / found["bytes_per_token_needed"] < most


def test_decoding_in_other_storage(config):
  changed = command.with_storage(config, "float16", None)
  assert (changed.model.dtype, changed.frozen_dtype) == ("float16", "float16")
  changed = command.with_storage(changed, "bfloat16", "int4")
  assert (changed.model.dtype, changed.frozen_dtype) == ("bfloat16", "int4")
  changed = command.with_storage(changed, "float16", None)
  assert (changed.model.dtype, changed.frozen_dtype) == ("float16", "int4")
  assert config.model.dtype == config.frozen_dtype == "float32"


def test_a_mistake_ends_in_one_line():
  done = run(f"--config={TINY_CONFIG}:{NOT_THERE}", "--topology=v9:2x2")
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: unknown topology "v9:2x2", expected a chip')
  assert not done.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"batch_size": 3}, "batch_size 3 is not divisible by the 8 devices"),
    ({"find_largest": True}, "a cpu has no memory of its own; give a --topol"),
  ],
)
def test_what_cannot_be_planned(config, arguments, message):
  with pytest.raises(ValueError, match=message):
    command.plan_command(config, **arguments)
