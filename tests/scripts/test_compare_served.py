"""Engines are made up: classes with the signatures of vLLM and SGLang."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from scripts import compare_served, convert
from tests.trainers.conftest import write_jsonl

TINY = "paligemma/assets/tiny.npz"
TOKENIZER = "paligemma/assets/tiny_tokenizer.model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("served")
  convert.convert(
    TINY, folder / "hf", format="huggingface", tokenizer=TOKENIZER
  )
  rng = np.random.default_rng(0)
  rows = []
  for i in range(3):
    pixels = rng.integers(0, 256, (41 + i, 37, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    rows.append({"image": f"{i}.png", "prefix": f"caption {i}", "suffix": ""})
  write_jsonl(folder / "data.jsonl", rows)
  return folder


def vllm(asked):
  """vLLM: LLM, SamplingParams and RequestOutput.outputs."""

  class LLM:
    def __init__(self, model, *, dtype="auto", limit_mm_per_prompt=None):
      asked["engine"] = model, dtype, limit_mm_per_prompt

    def generate(self, prompts, sampling_params):
      asked["sampling"] = vars(sampling_params)
      asked["prompts"] = [x["prompt"] for x in prompts]
      asked["sizes"] = [x["multi_modal_data"]["image"].size for x in prompts]
      return [
        types.SimpleNamespace(outputs=[types.SimpleNamespace(text=text)])
        for text in asked["answers"]
      ]

  return types.SimpleNamespace(LLM=LLM, SamplingParams=types.SimpleNamespace)


def sglang(asked):
  """SGLang: Engine(model_path=...).generate and shutdown."""

  class Engine:
    def __init__(self, *, model_path, dtype="auto"):
      asked["engine"] = model_path, dtype

    def generate(self, prompt=None, sampling_params=None, image_data=None):
      asked["sampling"], asked["prompts"] = sampling_params, prompt
      asked["sizes"] = [x.size for x in image_data]
      return [{"text": text} for text in asked["answers"]]

    def shutdown(self):
      asked["ended"] = True

  return types.SimpleNamespace(Engine=Engine)


@pytest.fixture
def install(monkeypatch):
  """Makes a module that answers as told, the only one that is installed."""

  def install(name, answers):
    asked = {"answers": answers}
    monkeypatch.setitem(sys.modules, name, globals()[name](asked))
    monkeypatch.setattr(
      compare_served.importlib.util, "find_spec", lambda x: x == name or None
    )
    return asked

  return install


@pytest.fixture(scope="module")
def here():
  return ["a", "b", "c"]


@pytest.fixture(autouse=True)
def generate(monkeypatch, here):
  """Answers of this project: those of generate are tested elsewhere."""
  monkeypatch.setattr(
    compare_served.paligemma, "generate", lambda *_, **options: here
  )


def test_vllm(folder, install, here):
  asked = install("vllm", here)
  found = compare_served.compare(
    folder / "hf", folder / "data.jsonl", dtype="float32", max_decode_len=5
  )
  assert (found["engine"], found["same"]) == ("vllm", 3)
  assert asked["engine"] == (str(folder / "hf"), "float32", {"image": 1})
  assert asked["sampling"] == {"temperature": 0.0, "max_tokens": 5}
  assert asked["prompts"] == [f"caption {i}" for i in range(3)]
  assert asked["sizes"] == [(37, 41), (37, 42), (37, 43)]
  assert compare_served.describe(found) == "vllm: 3 of 3 answers equal"


def test_sglang(folder, install):
  asked = install("sglang", ["a", "x", "c"])
  found = compare_served.compare(folder / "hf", folder / "data.jsonl")
  assert asked["engine"] == (str(folder / "hf"), "bfloat16")
  assert asked["sampling"] == {"temperature": 0.0, "max_new_tokens": 32}
  assert asked["prompts"] == [f"<image>caption {i}" for i in range(3)]
  assert asked["ended"]
  first, last = compare_served.describe(found).splitlines()
  assert first.endswith("data.jsonl:2: caption 1: here 'b', sglang 'x'")
  assert last == "sglang: 2 of 3 answers equal"


def test_what_cannot_be_compared(folder, install, monkeypatch):
  with pytest.raises(ValueError, match="vllm and sglang: not installed beside"):
    compare_served.compare(folder / "hf", folder / "data.jsonl")
  install("vllm", [])
  with pytest.raises(ValueError, match="sglang: not installed beside this"):
    compare_served.compare(
      folder / "hf", folder / "data.jsonl", engine="sglang"
    )
  with pytest.raises(ValueError, match="is a big_vision npz, expected a Hu"):
    compare_served.compare(TINY, folder / "data.jsonl")
