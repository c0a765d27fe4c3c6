"""A decoder alone: trained on packed texts, resumed, evaluated, asked."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from configs.gemma import forkme
from paligemma import evals, init, variants
from paligemma.checkpoints import npz
from paligemma.data import preprocess, sources
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from tests.trainers.conftest import TOKENIZER, write_jsonl

SIZES = {
  "width": 16,
  "depth": 2,
  "mlp_dim": 22,
  "num_heads": 4,
  "num_kv_heads": 2,
  "head_dim": 10,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """29 lines of all kinds, and weights."""
  folder = tmp_path_factory.mktemp("texts")
  data = TOKENIZER.read_bytes()
  turns = ("<start_of_turn>", "<end_of_turn>")
  engine = tokenizer_lib.engine(data, TOKENIZER).with_pieces(turns, TOKENIZER)
  (folder / "turns.model").write_bytes(engine.data)
  lines = []
  for i in range(29):
    messages = [
      {"role": "user", "content": f"{i}?"},
      {"role": "model", "content": f"{i}!"},
    ]
    lines += [
      {"text": f"the digit {i}" + " in white" * (i % 3)},
      {"prefix": f"{i} is ", "suffix": f"{i}"},
      {"messages": messages},
    ][i % 3 : i % 3 + 1]
  write_jsonl(folder / "train.jsonl", lines)
  write_jsonl(folder / "val.jsonl", [x for x in lines if "prefix" in x])
  config = make_config(folder, init="", tune="full")
  model = paligemma_model.make(**config.model.to_dict())
  rng = np.random.default_rng(0)
  params = {
    name: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
    for name, leaf in init.shapes(model, None).items()
  }
  npz.save(folder / "init.npz", params)
  return folder


def make_config(folder, values=(), **arguments):
  arguments = {
    "variant": "gemma2_nano",
    "dtype": "float32",
    "tokenizer": folder / "turns.model",
    "train": folder / "train.jsonl",
    "val": folder / "val.jsonl",
    "init": folder / "init.npz",
    "text_len": 67,
    "batch_size": 8,
    "epochs": 20,
    **arguments,
  }
  config = forkme.get_config(",".join(f"{k}={v}" for k, v in arguments.items()))
  config.model.vocab_size = 1794
  config.model.llm.update(**SIZES, remat_policy="none")
  config.log_steps = 1
  for name, value in dict(values).items():
    config[name] = value
  return config


@pytest.mark.parametrize("tune", ["full", "qlora_int8"])
def test_trained_and_resumed_bit_for_bit(
  folder, tmp_path, main, read_metrics, tune
):
  config = make_config(
    folder, {"checkpoint_steps": 3, "keep_checkpoints": None}, tune=tune
  )
  config.checkpoint_percent = None
  if tune == "full":
    config.learning_rate = 1e-3
  whole = tmp_path / "whole"
  assert main(config, whole) is None
  steps = sorted(int(x.name) for x in (whole / "checkpoints").iterdir())
  assert len(steps) > 2
  resumed = tmp_path / "resumed"
  shutil.copytree(whole, resumed)
  for step in steps[1:]:
    shutil.rmtree(resumed / "checkpoints" / str(step))
  name = "final.npz" if tune == "full" else "adapter.safetensors"
  (resumed / name).unlink()
  assert main(config, resumed) is None
  assert (resumed / name).read_bytes() == (whole / name).read_bytes()
  losses = [line["loss"] for line in read_metrics(whole) if "loss" in line]
  assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
  """A config with answers, and its run; texts unpacked."""
  from trainers import train

  config = make_config(
    folder, answers="true", packing="false", tune="full", epochs=1
  )
  folder = tmp_path_factory.mktemp("run")
  train.train(config, folder)
  return config, folder


def test_perplexity_and_answers(run, read_metrics):
  _, folder = run
  names = set().union(*read_metrics(folder))
  assert {"pplx/perplexity", "val/exact_match"} < names
  assert "no picture: texts alone" in (folder / "report.html").read_text()


def test_a_run_answers(run, tmp_path):
  config, folder = run
  model, params = paligemma.load(folder)
  assert model.img is None
  tok = paligemma.Tokenizer(config.tokenizer, plain=True)
  prompts = ["3 is ", "the digit "]
  found = paligemma.generate(model, params, tok, None, prompts)
  one_by_one = [
    paligemma.generate(model, params, tok, None, x) for x in prompts
  ]
  assert [[x] for x in found] == one_by_one
  with pytest.raises(
    ValueError, match=r"^1 images for a decoder without image"
  ):
    paligemma.generate(model, params, tok, ["a.png"], prompts)
  paligemma.save(tmp_path / "hf", model, params, format="huggingface")
  again = paligemma.load(tmp_path / "hf")
  assert paligemma.generate(*again, tok, None, prompts) == found


def test_an_answer_ends_with_its_turn(run):
  config, folder = run
  tok = paligemma.Tokenizer(config.tokenizer, plain=True)
  (end,) = tok.encode("<end_of_turn>")

  def always(logits, rng):
    return jnp.full(len(logits), end)

  ask = functools.partial(
    paligemma.generate,
    *paligemma.load(folder),
    tok,
    None,
    sampler=always,
    rng=0,
    max_decode_len=3,
  )
  turn = "<start_of_turn>user\n3?<end_of_turn>\n<start_of_turn>model\n"
  assert ask([turn]) == [""]
  assert ask(["3"]) == ["<end_of_turn>" * 3]
  assert ask([turn, "3"]) == ["", "<end_of_turn>" * 3]


def test_an_evaluated_answer_ends_with_its_turn(run, tmp_path):
  """As one of paligemma.generate; its reference has no end either."""
  config, folder = run
  model, params = paligemma.load(folder)
  tok = paligemma.Tokenizer(config.tokenizer, plain=True)
  (end,) = tok.encode("<end_of_turn>")
  chat = {
    "messages": [
      {"role": "user", "content": "3?"},
      {"role": "model", "content": "3!"},
    ]
  }
  path = tmp_path / "val.jsonl"
  evaluator = evals.Generate(
    name="val",
    source=None,
    preprocess=preprocess.Preprocess(tok, None, 67, train=False),
    tokenizer=tok,
    batch_size=2,
    max_decode_len=3,
    sampler=lambda logits, rng: jnp.full(len(logits), end),
  )

  def answers(*lines):
    write_jsonl(path, lines)
    source = sources.make("text_jsonl", path=path)
    records, _ = dataclasses.replace(evaluator, source=source).predict(
      model,
      params,
      sharding.make_mesh(devices=jax.devices()[:1]),
      rng=jax.random.key(0),
    )
    return records

  first, _ = answers(chat, chat)
  assert (first["prediction"], first["suffix"]) == ("", "3!")
  mixed, plain = answers(chat, {"prefix": "3", "suffix": "3"})
  assert mixed["prediction"] == ""
  assert mixed["score"] < first["score"] < 0, "goes on beyond the turn"
  assert plain["prediction"] == "<end_of_turn>" * 3


@pytest.mark.parametrize(
  ("lines", "arguments", "message"),
  [
    ([{"text": "\n"}], {}, "train.jsonl:1: the text is empty"),
    (
      [{"text": "a"}, {"label": "b"}],
      {},
      'train.jsonl:2: expected one of "text", "suffix"',
    ),
    (
      [{"image": "1.jpg", "text": "a"}],
      {},
      'jsonl:1: has an "image", kind "te',
    ),
    (
      [{"text": "a" * 80}],
      {"packing": "false"},
      "train.jsonl:1: prompt and answer have 1 + 81 tokens, text_len 67 has",
    ),
    (
      [{"text": "a"}],
      {"variant": "paligemma2_tiny"},
      "config.train.packing is for texts alone, paligemma2_tiny has an image",
    ),
  ],
)
def test_mistakes(folder, tmp_path, main, lines, arguments, message):
  write_jsonl(tmp_path / "train.jsonl", lines)
  config = make_config(folder, train=tmp_path / "train.jsonl", **arguments)
  found = main(config, tmp_path / "run", dry_run=True)
  assert message in found and "\n" not in found
  assert not (tmp_path / "run").exists()


def test_more_ids_than_rows(folder, tmp_path, main):
  config = make_config(folder)
  config.model.vocab_size = 1792
  found = main(config, tmp_path / "run", dry_run=True)
  assert "turns.model: 1794 ids, but the model has only 1792 rows" in found


def test_pictures_need_a_tower(folder, tmp_path, main):
  config = make_config(folder, packing="false")
  (tmp_path / "1.jpg").touch()
  path = tmp_path / "pictures.jsonl"
  write_jsonl(path, [{"image": "1.jpg", "prefix": "a", "suffix": "b"}])
  config.train.sources.main = dict(kind="jsonl", path=str(path))
  found = main(config, tmp_path / "run", dry_run=True)
  assert f"{path}:1: has an image, but the model has no image tower" in found


def test_the_decoder_of_a_config_is_a_variant():
  config = forkme.get_config("variant=gemma2_2b")
  assert config.model.variant in variants.GEMMA
  assert config.train.packing
