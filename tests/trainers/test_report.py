import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from paligemma.planning import memory
from paligemma.training import sharding
from trainers import report

TABLE = """\
parameter             shape        dtype     sharding        trained by
img/head/bias         7            float32   replicated
img/head/kernel       1024x4096    bfloat16  data:0
llm/final_norm/scale  3x5          bfloat16  replicated
llm/layers/attn/w     2x1024x1024  float32   data:1 model:2  .*/attn/.*
trainable        2,097,152 numbers      0.008 GiB      0.001 GiB per device
frozen           4,194,326 numbers      0.008 GiB      0.002 GiB per device
optimizer        2,097,153 numbers      0.008 GiB      0.001 GiB per device
"""
SHORT = """\
tower  parameters  dtype              trained by
img    2           bfloat16, float32  -
llm    1           bfloat16           -
llm    1           float32            .*/attn/.*
"""


def write_lines(path, lines):
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def steps(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


def make_report(folder, **arguments):
  return report.Report(folder, total_steps=9, **arguments)


def test_values_are_lines_of_json(tmp_path, capsys):
  made = make_report(tmp_path, first_step=0)
  made.write(3, {"loss": np.float32(0.5), "mfu": None, "skipped": 2})
  made.write(3, {"val/exact_match": 1})
  made.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert lines == [
    '{"step": 3, "loss": 0.5, "skipped": 2.0}',
    '{"step": 3, "val/exact_match": 1.0}',
  ]
  assert "step 3  loss=0.5  skipped=2\n" in capsys.readouterr().err
  made = make_report(tmp_path, first_step=3)
  made.write(4, {"loss": 0.25}, "step 4 of 9")
  made.close()
  assert capsys.readouterr().err == "step 4 of 9\n"
  assert steps(tmp_path) == [3, 3, 4]
  assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_lines_name_their_bundle(tmp_path):
  made = make_report(tmp_path, first_step=0, bundle={"id": "abc"})
  made.write(3, {"loss": 0.5})
  made.close()
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert lines == ['{"step": 3, "loss": 0.5, "bundle": "abc"}']


def test_resuming_drops_what_will_be_written_again(tmp_path):
  lines = [
    {"step": 0, "val/exact_match": 0.0},
    {"step": 2, "loss": 3.0},
    {"step": 4, "loss": 2.0},
    {"step": 4, "val/exact_match": 0.1},
    {"step": 4, "valuable": 1.0},
    {"step": 4, "pplx/perplexity": 7.0},
    {"step": 5, "loss": 1.5},
    {"step": 6, "val/exact_match": 0.2},
  ]
  write_lines(tmp_path / "metrics.jsonl", lines)
  make_report(tmp_path, first_step=4, repeated=["val"]).close()
  kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
  expected = [lines[i] for i in (0, 1, 2, 4, 5)]
  assert [json.loads(line) for line in kept] == expected


def test_a_line_cut_short_by_the_end_of_the_machine_is_dropped(
  tmp_path, capsys
):
  path = tmp_path / "metrics.jsonl"
  write_lines(path, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}])
  path.write_text(path.read_text() + '{"step": 3, "lo')
  made = make_report(tmp_path, first_step=7)
  made.write(8, {"loss": 0.5})
  made.close()
  assert steps(tmp_path) == [1, 2, 8]
  said = capsys.readouterr().err.splitlines()
  assert said[0] == f"{path}:3: damaged, left out"
  made = make_report(tmp_path, first_step=8)
  made.close()
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  "damage",
  [
    '{"loss": 1}',
    '{"step": Infinity}',
    '{"step": null}',
    f'{{"step": {"9" * 400}}}',
    "[" * 100_000 + "]" * 100_000,
    "\x00" * 9,
    "[1]",
    '"a"',
    "\u00e9",
  ],
)
def test_a_damaged_line_is_dropped_alone(tmp_path, damage, capsys):
  path = tmp_path / "metrics.jsonl"
  path.write_text(f'{{"step": 1}}\n\n{damage}\n{{"step": 2}}\n{damage}')
  report.Report(tmp_path, first_step=3, total_steps=9).close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
  said = f"{path}:3: damaged, left out, as are 1 more lines\n"
  assert capsys.readouterr().err == said


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  made = make_report(tmp_path, first_step=0)
  made.write(3, {"loss": 0.5})
  made.say("hello")
  made.step(3)
  made.close()
  assert not list(tmp_path.iterdir())
  assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
  made = make_report(tmp_path, first_step=4)
  made.step(7)
  made.say("above the bar")
  made.close()
  err = capsys.readouterr().err
  assert "7/9" in err
  assert "above the bar\n" in err


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(data=4, model=2)


def leaf(mesh, shape, dtype, *axes):
  place = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def test_table(mesh):
  attn = leaf(mesh, (2, 1024, 1024), jnp.float32, None, "data", "model")
  trainable = {"llm/layers/attn/w": attn}
  frozen = {
    "img/head/bias": leaf(mesh, (7,), jnp.float32),
    "llm/final_norm/scale": leaf(mesh, (3, 5), jnp.bfloat16),
    "img/head/kernel": leaf(mesh, (1024, 4096), jnp.bfloat16, "data"),
  }
  opt_state = (leaf(mesh, (), jnp.int32), {"llm/layers/attn/w": attn})
  given = (trainable, frozen, opt_state)
  rules = (r".*/attn/.*", "llm/.*/w")
  table = report.parameter_table(*given, rules=rules, verbose=True)
  assert table == TABLE.removesuffix("\n")
  lines = report.parameter_table(*given, rules=rules).splitlines()
  assert lines == [*SHORT.splitlines(), *TABLE.splitlines()[-3:]]


def test_bytes_per_device(mesh):
  assert memory.bytes_per_device(leaf(mesh, (8, 6), jnp.float32)) == 192
  split = leaf(mesh, (8, 6), jnp.bfloat16, "data", "model")
  assert memory.bytes_per_device(split) == 2 * 3 * 2


def test_memory_line_counts_a_donated_argument_once():
  x = jax.ShapeDtypeStruct((2**18,), jnp.float32)  # 1 MiB
  kept = jax.jit(lambda x: x + 1).lower(x).compile()
  donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
  assert report.memory_line(kept) == (
    "expected memory per device: 0.002 GiB "
    "(arguments 0.001, temporaries 0.000, new outputs 0.001)"
  )
  assert report.memory_line(donated).startswith(
    "expected memory per device: 0.001 GiB (arguments 0.001"
  )


def test_peak_memory_is_unknown_on_a_cpu():
  assert report.peak_memory_gib() is None


def test_peak_memory_is_that_of_the_fullest_device(monkeypatch):
  class Device:
    def __init__(self, peak):
      self.peak = peak

    def memory_stats(self):
      return {"peak_bytes_in_use": self.peak * 2**30}

  monkeypatch.setattr(jax, "local_devices", lambda: [Device(2), Device(3)])
  assert report.peak_memory_gib() == 3
