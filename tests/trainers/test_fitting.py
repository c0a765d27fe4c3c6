"""The fastest layout that fits; peaks are those of the CPU's compiler."""

import contextlib

import jax
import pytest

from paligemma.models import device as device_lib
from paligemma.models.attention import reference as attention
from paligemma.planning import collectives, memory
from trainers import fitting, inputs, start, train
from trainers.plan import Layout, Plan

LEAST = Layout("block_inputs", "shard")
WHOLE = Layout("block_inputs", "replicate")
STORES = Layout("products", "replicate")


@pytest.fixture
def config(tiny):
  """Attention trains; layers are large enough to be split."""
  config = tiny.config(batch_size=16)
  config.model.llm.update(
    width=192, mlp_dim=384, depth=3, remat_policy="auto", num_heads=4
  )
  config.model.img.update(remat_policy="auto", num_classes=192)
  return config


def peak(plan, layout):
  return memory.of(plan.with_layout(layout).compile_step()).peak


def test_the_layouts_of_a_config(config):
  def layouts(devices=8, **values):
    changed = config.copy_and_resolve_references()
    changed.update(values)
    return list(Plan(changed, devices=jax.devices()[:devices]).layouts)

  assert layouts() == [STORES, WHOLE, LEAST]
  assert layouts(frozen_sharding="shard") == [LEAST]
  assert layouts(frozen_sharding="replicate") == [STORES, WHOLE]
  assert layouts(trainable=(".*",)) == [LEAST]
  assert layouts(devices=1) == [Layout("products", "shard"), LEAST]
  for tower in ("img", "llm"):
    config.model[tower].remat_policy = "block_inputs"
  assert layouts() == [WHOLE, LEAST]
  with pytest.raises(ValueError, match=r'"replicat".*Did you mean "replicate"'):
    layouts(frozen_sharding="replicat")


def test_the_fastest_layout_that_fits_is_taken(config):
  plan = Plan(config)
  assert plan.layout == LEAST
  peaks = {layout: peak(plan, layout) for layout in plan.layouts}
  assert peaks[STORES] > peaks[WHOLE] > peaks[LEAST]
  compiled = []

  def compile_step(plan):
    compiled.append(plan.layout)
    return plan.compile_step()

  for layout, expected in peaks.items():
    compiled.clear()
    usable = expected / fitting.SHARE + 1
    fitted, step, tried = fitting.fit(plan, usable, compile_step)
    assert fitted.layout == compiled[-1] == layout
    assert memory.of(step).peak == expected
    others = [found for found in tried if not found.fits]
    assert [found.layout for found in others] == [
      x for x in plan.layouts if peaks[x] > expected
    ]
    for found in others:
      if found.compiled:
        assert found.peak == peaks[found.layout]
      else:  # no time is lost on what cannot fit
        assert usable < found.peak <= peaks[found.layout]
        assert found.layout not in compiled


def test_the_lines_say_what_was_tried(config):
  plan = Plan(config)
  *_, tried = fitting.fit(plan, 1e9, Plan.compile_step)
  (line,) = (found.describe(1e9) for found in tried)
  size = f"{peak(plan, STORES) / 2**30:.2f}"
  assert line == (
    f"remat_policy products, frozen_sharding replicate: {size} GiB of 0.93, "
    "taken"
  )
  *_, tried = fitting.fit(plan, 1.0, Plan.compile_step)
  assert [found.compiled for found in tried] == [False, False]
  assert tried[0].describe(1.0).endswith("of 0.00, does not fit")
  assert "replicate: at least 0." in tried[0].describe(1.0)


def test_a_device_without_memory_of_its_own_takes_the_least(config):
  assert fitting.usable_bytes() is None
  plan, *_ = train.fit(Plan(config))
  assert plan.layout == LEAST


def test_the_smallest_device_counts(monkeypatch):
  class Device:
    def __init__(self, limit):
      self.limit = limit

    def memory_stats(self):
      return {"bytes_limit": self.limit}

  devices = [Device(3 * 2**30), Device(2 * 2**30)]
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  assert fitting.usable_bytes() == 2 * 2**30


def test_a_step_that_the_compiler_refuses_does_not_fit(config):
  plan, refused = Plan(config), []

  def compile_step(plan):
    if plan.layout == STORES:
      refused.append(plan.layout)
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Used 18.21G of 15.75G hbm."
      )
    return plan.compile_step()

  fitted, _, (stores, whole) = fitting.fit(plan, 1e9, compile_step)
  assert refused == [STORES] and fitted.layout == WHOLE and whole.fits
  assert "at least 18.21 GiB of 0.93, does not fit" in stores.describe(1e9)

  def fail(plan):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")

  with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
    fitting.fit(plan, 1e9, fail)

  def fail_once(plan):
    return fail(plan) if plan.layout == STORES else plan.compile_step()

  fitted, _, (stores, _) = fitting.fit(plan, 1e9, fail_once)
  assert fitted.layout == WHOLE
  assert "does not compile: INTERNAL: something else" in stores.describe(1e9)


def test_a_step_whose_kernel_does_not_compile_is_in_chunks(
  tiny, monkeypatch, caplog
):
  gpu = jax.sharding.AbstractDevice("NVIDIA H200", 1, "gpu")
  monkeypatch.setattr(device_lib, "current", lambda: gpu)
  monkeypatch.setattr(device_lib, "local", lambda: jax.local_devices()[0])
  monkeypatch.setattr(attention, "_LOGITS_AT_ONCE", 2**11)

  def lower(how):
    config = tiny.config({"model.dtype": "bfloat16"}, text_len=131)
    config.model.llm.update(attention=how, head_dim=14)
    return Plan(config).lower_step().as_text()

  found = lower("auto")
  (line,) = caplog.messages
  assert "2 heads of 14 in bfloat16: ValueError: Only interpret" in line
  assert line.endswith('"chunked" is used')
  assert found == lower("chunked")
  with pytest.raises(ValueError, match='"flash" does not run on NVIDIA H200'):
    lower("flash")


def test_replicated_weights_are_not_gathered(config):
  plan = Plan(config)

  def gathered(layout):
    plan_of = plan.with_layout(layout)
    found = collectives.find(plan_of.compile_step().as_text())
    return collectives.parameter_bytes(found, plan.frozen)

  assert gathered(LEAST) > 0
  assert gathered(WHOLE) == 0


def test_all_layouts_learn_the_same(config):
  """What differs is rounding."""
  config.init = ""
  plan, found = Plan(config), []
  tok = plan.task.make_tokenizer(config, plan.model)
  for layout in plan.layouts:
    laid = plan.with_layout(layout)
    batches = inputs.train_batches(config, plan.sources, tok)
    with contextlib.closing(
      inputs.Feed(batches, laid.step_arguments()[-1])
    ) as feed:
      batch, _ = next(feed)
    _, measured = laid.compile_step()(*start.initial(laid), batch)
    found.append({name: float(value) for name, value in measured.items()})
  assert found[0]["grad_norm"] > 0
  for other in found[1:]:
    assert other == pytest.approx(found[0], rel=1e-5)
