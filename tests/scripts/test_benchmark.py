"""The benchmark measures what it says, on a small model."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import paligemma
from scripts import benchmark
from scripts.benchmarks import contest, data, decode, load, subject, train

SIZES = ["--variant", "paligemma_tiny", "--res", "28"]
CONFIG = (
  "tests/trainers/tiny_config.py:"
  "tokenizer=paligemma/assets/tiny_tokenizer.model"
)


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs a command line; returns the object of its last line."""
  monkeypatch.setattr(contest, "_SIDE", 64)
  monkeypatch.setattr(contest, "_ARRAY_BYTES", 2**12)
  monkeypatch.setattr(train, "_GROWTH", (2,))
  monkeypatch.setattr(decode, "_GROWTH", (5,))
  monkeypatch.setattr(decode, "NEW_TOKENS", 5)

  def run(*arguments):
    arguments = ["benchmark", *map(str, arguments), "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  return run


def assert_figure(figure, dtype):
  assert figure.keys() == {"median", "min", "max", "dtype", "floor"}
  assert 0 <= figure["min"] <= figure["median"] <= figure["max"]
  assert figure["floor"] > 0
  assert figure["dtype"] == dtype


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
  "format, runs", [("npz", 2), ("huggingface", 1), ("orbax", 1)]
)
def test_load(tmp_path, run, format, runs):
  result = run(
    *["load", "--folder", tmp_path, *SIZES],
    *["--format", format, "--runs", runs],
  )
  (path,) = tmp_path.iterdir()
  model, params = paligemma.load(path)
  assert model.llm.dtype == "bfloat16"
  count = sum(x.size for x in jax.tree.leaves(params))
  assert result["array_bytes"]["median"] == 2 * count
  if format == "npz":
    assert result["file_bytes"] == path.stat().st_size
  assert result["file_bytes"] > result["array_bytes"]["median"]
  for name in ("seconds", "peak_bytes", "array_bytes"):
    assert_figure(result[name], "bfloat16")


def test_train(run):
  result = run(
    *["train", "--config", CONFIG, "--dtype", "float32", "--growth"],
    *["--runs", 2, "--steps", 2],
  )
  assert_figure(result["examples_per_s"], "float32")
  assert result["losses"] == sorted(result["losses"], reverse=True)
  assert result["losses"][0] > result["losses"][-1] + 1e-3
  assert result["loss_difference"] < 1e-5
  (memory,) = result["growth"]["batch_size"]
  assert memory["batch_size"] == 16
  assert memory["temporaries"] > 0
  (time,) = result["growth"]["res"]
  assert time["res"] == 56
  assert time["flops"] > 0 and time["seconds"] > 0
  assert "peer" not in result


def test_decode(run):
  result = run("decode", "--config", CONFIG, "--growth", "--runs", 1)
  assert_figure(result["tokens_per_s"], "bfloat16")
  (time,) = result["growth"]["new_tokens"]
  assert time.keys() == {"new_tokens", "seconds_per_token"}


def test_data(run, monkeypatch):
  monkeypatch.setattr(data, "_BATCHES", 2)
  result = run("data", "--config", CONFIG, "--runs", 2, "--workers", 2)
  assert_figure(result["images_per_s"], "float32")
  assert result["jpeg"].startswith("640x480, quality 85, 4:2:0, ")
  assert list(result["workers"]) == ["1", "2"]
  assert result["workers"]["2"]["min"] > 0


@pytest.mark.parametrize("what", ["train", "decode"])
def test_without_the_peer_the_line_says_what_to_install(run, monkeypatch, what):
  monkeypatch.setitem(sys.modules, "torch", None)
  monkeypatch.delitem(sys.modules, "scripts.benchmarks.peer", raising=False)
  with pytest.raises(
    ValueError, match=r"--peer .*pip install -e '.\[parity\]'"
  ):
    run(what, "--config", CONFIG, "--peer", "transformers")


def test_a_config_that_is_not_there_is_named(run):
  with pytest.raises(
    ValueError, match=r"--config configs/fork\.py: no such file"
  ):
    run("train", "--config", "configs/fork.py:res=28")
  with pytest.raises(
    ValueError, match="text_len 16, expected more than the 16"
  ):
    run("train", "--config", f"{CONFIG},text_len=16")


def test_the_bench_shape():
  config = subject.read_config(None, "float32")
  plan = subject.make_plan(config)
  llm, img = plan.model.llm, plan.model.img
  assert (llm.width, llm.depth, llm.mlp_dim) == (512, 6, 4096)
  assert (llm.num_heads, llm.num_kv_heads, llm.head_dim) == (8, 1, 64)
  assert (img.width, img.depth, img.mlp_dim, img.num_heads) == (384, 6, 1536, 6)
  assert (llm.vocab_size, img.patch_size, config.res) == (257_152, 14, 224)
  assert (config.batch_size, config.text_len) == (4, 64)
  assert all("/attn/" in name for name in plan.trainable)


def test_a_batch_has_prompts_and_answers_that_fill_the_input():
  config = subject.read_config(CONFIG, "float32")
  batch = subject.batch(config, 97)
  # 19 tokens, 16 of the prompt, and one position that the step cuts off.
  for row in range(config.batch_size):
    assert batch["mask_input"][row].tolist() == 19 * [True] + [False]
    assert batch["mask_ar"][row].tolist() == 16 * [0] + 4 * [1]
    assert batch["mask_loss"][row].tolist() == 16 * [0] + 3 * [1] + [0]
    assert (batch["text"][row, :19] >= 3).all()
    assert batch["text"].max() < 97
  prompts = subject.prompts(batch)
  assert prompts["text"].shape == (config.batch_size, 16)
  assert prompts["mask_input"].all() and not prompts["mask_ar"].any()


def test_a_step_needs_no_logits_of_the_prompt():
  config = subject.read_config(CONFIG, "float32")
  plan = subject.make_plan(config)
  llm = plan.model.llm
  prompt = config.batch_size * subject.PREFIX
  # Forward, and back to the features: the table is frozen.
  logits = 2 * (2 * prompt * llm.vocab_size * llm.width)
  flops, _ = train.work(plan)
  assert flops == plan.flops_per_step - logits


def test_decoding_reads_the_decoder_once_a_token():
  config = subject.read_config(CONFIG, "float32")
  plan = subject.make_plan(config)
  params = {
    name: np.zeros(leaf.shape, np.float32)
    for name, leaf in plan.decode_arguments()[0].items()
  }
  prefill, rest = decode.work(plan.model, params, config)
  steps = decode.NEW_TOKENS - 1
  llm_bytes, left = divmod(rest[1], steps)
  assert left == 0
  img = sum(x.size for name, x in params.items() if name.startswith("img/"))
  assert prefill[1] - llm_bytes == 4 * img
  # A token costs twice every entry of a matrix, and a little attention.
  llm = sum(
    x.size
    for name, x in params.items()
    if name.startswith("llm/") and not name.endswith("/scale")
  )
  matrices = steps * 2 * config.batch_size * llm
  assert 1 < rest[0] / matrices < 1.1
  assert prefill[0] > rest[0] / steps


def test_the_floor_is_what_each_phase_waits_for():
  rates = {"flops_per_s": 10.0, "bytes_per_s": 5.0}
  assert contest.floor([(30, 10), (10, 35)], rates) == 3 + 7


def test_contestants_run_in_turns():
  log = []
  clock = iter(range(100)).__next__
  taken = contest.seconds(
    {"a": lambda: log.append("a"), "b": lambda: log.append("b")}, 3, clock=clock
  )
  assert log == list("abababab")
  assert taken == {"a": [1, 1, 1], "b": [1, 1, 1]}
  rate = {"x": contest.spread([2.0, 9.0, 4.0]), "y": contest.spread([3.0])}
  assert rate["x"] == {"median": 4.0, "min": 2.0, "max": 9.0}


def test_ratios_are_to_the_best_of_the_peer(monkeypatch):
  spread = {"ours": 10.0, "float32": 3.0, "bfloat16": 4.0}
  spread = {name: contest.spread([value]) for name, value in spread.items()}
  monkeypatch.setattr(contest, "rates", lambda *_, **__: spread)
  rates = {"flops_per_s": 1.0, "bytes_per_s": 1.0}
  monkeypatch.setattr(contest, "machine_rates", lambda dtype: rates)
  result = contest.compete(
    *("decode", "tokens_per_s", {}),
    **dict(runs=1, amount=40, phases=[(2, 1)], dtype="float32", version="x 1"),
  )
  assert result["tokens_per_s"]["floor"] == 20
  assert result["peer"]["ratio_to_best"] == 2.5
  assert result["peer"]["floor_to_best"] == 5


def test_a_mistake_is_one_line():
  command = [sys.executable, "-m", "scripts.benchmark", "train"]
  done = subprocess.run(
    [*command, "--config", "none.py"], capture_output=True, text=True
  )
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: --config none.py: no")


def test_a_tiled_tensor_reads_alike_in_any_part():
  tensor = load.Tiled((7, 5, 3), "float32")
  whole = tensor[0:7]
  assert whole.shape == (7, 5, 3)
  assert len(set(whole[0].ravel())) == 15
  assert (tensor[2:5] == whole[2:5]).all()
