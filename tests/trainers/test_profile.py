"""Traces of steps, and the ops that are named."""

import concurrent.futures
import multiprocessing
import re

import jax
import jax.numpy as jnp
import pytest

from trainers import profile, train

TPU = """
planes {
  name: "/device:TPU:0"
  lines { name: "XLA Modules" events { metadata_id: 1 duration_ps: 9000 }
          events { metadata_id: 2 offset_ps: 10000 duration_ps: 9000 } }
  lines { name: "XLA Ops" events { metadata_id: 3 duration_ps: 8000 }
          events { metadata_id: 4 offset_ps: 1000 duration_ps: 3000 }
          events { metadata_id: 4 offset_ps: 5000 duration_ps: 2000 }
          events { metadata_id: 4 offset_ps: 11000 duration_ps: 7000 } }
  event_metadata { key: 1 value { id: 1 name: "jit_step(123)" } }
  event_metadata { key: 2 value { id: 2 name: "jit_stepping(45)" } }
  event_metadata { key: 3 value { id: 3 name: "%while.2 = (f32[]) while(%a)" } }
  event_metadata { key: 4 value { id: 4 name: "%fusion.7 = f32[] fusion()" } }
}
"""
GPU = """
planes {
  name: "/device:GPU:0"
  lines { name: "Stream #13" events { metadata_id: 1 duration_ps: 5000
            stats { metadata_id: 1 str_value: "fusion.7" }
            stats { metadata_id: 2 str_value: "jit_step" } }
          events { metadata_id: 1 duration_ps: 2000
            stats { metadata_id: 1 str_value: "fusion.7" }
            stats { metadata_id: 2 str_value: "jit_generate" } } }
  lines { name: "XLA Ops" events { metadata_id: 2 duration_ps: 5000 } }
  event_metadata { key: 1 value { id: 1 name: "loop_fusion_kernel" } }
  event_metadata { key: 2 value { id: 2 name: "fusion.7" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
  stat_metadata { key: 2 value { id: 2 name: "hlo_module" } }
}
"""


@pytest.mark.parametrize("text", [TPU, GPU])
def test_ops_of_the_step_alone_on_accelerators(text):
  serialized = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
  trace = jax.profiler.ProfileData.from_serialized_xspace(serialized)
  assert profile.time_of_ops(trace, "jit_step") == {"fusion.7": 5}


def compile_step():
  def step(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ x), x), 1

  return jax.jit(step).lower(jnp.ones((53, 53))).compile()


@pytest.fixture
def alone():
  """Calls a function of this file in a process of its own.

  A process that has loaded libtpu 0.0.51, as tests of the planner do, ends with
  a segmentation fault when it begins a trace.
  """
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    yield lambda *call: pool.submit(*call).result()


def trace_four_steps(folder):
  said = []
  step = profile.Profiled(
    compile_step(), (2, 4), folder, step=1, say=said.append
  )
  is_there = []
  x = jnp.ones((53, 53))
  for _ in range(4):
    x, _ = step(x)
    is_there.append(any(folder.rglob("*.xplane.pb")))
  return said, is_there


def test_trace_of_the_steps_that_are_named(alone, tmp_path):
  said, is_there = alone(trace_four_steps, tmp_path)
  assert is_there == [False, False, True, True]
  (text,) = said
  first, head, *rows = text.splitlines()
  (file,) = tmp_path.rglob("*.xplane.pb")
  assert first.startswith(f"wrote {file}; steps 3 to 4, longest of ")
  assert head.split() == ["op", "ms", "per", "step", "share", "from"]
  assert 1 <= len(rows) <= 5
  shares = [float(re.search(r"([\d.]+)%", row)[1]) for row in rows]
  assert shares == sorted(shares, reverse=True)
  assert sum(shares) <= 100.5
  assert any(row.endswith("  dot_general") for row in rows), text
  assert not any(row.startswith("while") for row in rows)


def stop_while_tracing(folder):
  for _ in range(2):
    step = profile.Profiled(compile_step(), (0, 2), folder, step=0, say=print)
    step(jnp.ones((53, 53)))
    step.close()
    step.close()


def test_a_run_that_stops_meanwhile_ends_its_trace(alone, tmp_path):
  alone(stop_while_tracing, tmp_path)


def test_a_resumed_run_beyond_them(tmp_path):
  said = []
  step = profile.Profiled(
    compile_step(), (2, 4), tmp_path, step=3, say=said.append
  )
  step(jnp.ones((53, 53)))
  assert said == ["no trace: the run goes on at step 3, after 2"]
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "3", "3:", "3:3", "5:4", "-1:4", "a:b"])
def test_what_is_no_range_of_steps(text):
  with pytest.raises(ValueError) as error:
    profile.parse(text)
  expected = (
    f'--profile_steps is "{text}", expected FIRST:LAST, such as 10:13 for the '
    "three steps that follow step 10"
  )
  assert str(error.value) == expected
  assert profile.parse("10:13") == (10, 13)


def test_steps_that_the_run_has_not(tiny, tmp_path):
  with pytest.raises(ValueError) as error:
    train.train(tiny.config(), tmp_path / "run", profile_steps=(3, 9))
  expected = "--profile_steps is 3:9, but the run has only 8 steps"
  assert str(error.value) == expected
  assert not (tmp_path / "run").exists()
