"""The adapter of lmms-eval, against a stand-in of the few names that it needs.

Requests have the arguments that lmms-eval 0.7.3 gives, lmms_eval/api/task.py.
"""

import dataclasses
import importlib
import logging
import sys
import types

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import integrations
from paligemma.evals import perplexity

CKPT = "paligemma/assets/tiny.npz"
TOKENIZER = "paligemma/assets/tiny_tokenizer.model"


@pytest.fixture(scope="module")
def module():
  """The adapter, over the stand-in."""
  names = ("", ".api", ".api.instance", ".api.model")
  names += (".models", ".models.registry_v2")
  fake = {f"lmms_eval{x}": types.ModuleType(f"lmms_eval{x}") for x in names}

  class lmms:
    def __init__(self):
      self.task_dict = {}

  @dataclasses.dataclass(frozen=True)
  class ModelManifest:
    model_id: str
    simple_class_path: str

  @dataclasses.dataclass
  class GenerationResult:
    text: object

  fake["lmms_eval.api.model"].lmms = lmms
  fake["lmms_eval.api.instance"].GenerationResult = GenerationResult
  registry = fake["lmms_eval.models.registry_v2"]
  registry.ModelManifest = ModelManifest
  fake["lmms_eval.models"].registry_v2 = registry
  with pytest.MonkeyPatch.context() as patch:
    for name, content in fake.items():
      patch.setitem(sys.modules, name, content)
    yield importlib.import_module("paligemma.integrations.lmms_eval")
    sys.modules.pop("paligemma.integrations.lmms_eval")


@pytest.fixture(scope="module")
def documents():
  rng = np.random.default_rng(0)
  return [
    {
      "image": Image.fromarray(rng.integers(0, 256, (31, 43, 3), np.uint8)),
      "question": f"what digit is this, {i}?",
      "answer": str(i),
    }
    for i in range(5)
  ]


TASKS = ("textvqa_val", "textcaps_val_lite", "mine", "pope_adv")


@pytest.fixture(scope="module")
def model(module, documents):
  made = module.PaliGemma(CKPT, TOKENIZER, dtype="float32", batch_size="2")
  made.task_dict = {task: {"test": documents} for task in TASKS}
  return made


def request(task, number, second, context="Answer with a word."):
  pictures = lambda doc: [doc["image"]]  # noqa: E731
  return types.SimpleNamespace(
    args=(context, second, pictures, number, task, "test")
  )


def answers(documents, prompts, **options):
  loaded = paligemma.load(CKPT, "float32")
  tok = paligemma.Tokenizer(TOKENIZER)
  images = [doc["image"] for doc in documents]
  return paligemma.generate(*loaded, tok, images, prompts, **options)


def test_answers_are_those_of_generate(model, documents):
  found = model.generate_until(
    [
      request("textvqa_val", i, {"max_new_tokens": 4, "until": ["ASSISTANT:"]})
      for i in range(5)
    ]
  )
  prompts = [f"answer en {doc['question']}" for doc in documents]
  assert found == answers(documents, prompts, max_decode_len=4)
  assert len(set(found)) > 1


def test_the_options_and_prompts_of_requests(model, documents, monkeypatch):
  """Each is asked in its own words, decoded as it says, in its place."""
  said = []

  def generate(model, params, tok, images, prompts, **options):
    said.append((prompts, options["max_decode_len"], options["sampler"]))
    return [f"{x} END rest" for x in prompts]

  monkeypatch.setattr("paligemma.api.generate", generate)
  found = model.generate_until(
    [
      request("textcaps_val_lite", 0, {"max_new_tokens": 64}),
      request("pope_adv", 1, {"until": "END", "num_beams": 3}),
      request("textcaps_val_lite", 2, {"max_new_tokens": 64}),
      request("mine", 3, {"do_sample": True, "temperature": 0.5}),
    ]
  )
  assert found == [
    "caption en END rest",
    "what digit is this, 1? ",
    "caption en END rest",
    "Answer with a word. END rest",
  ]
  assert said == [
    (["caption en"] * 2, 64, "greedy"),
    (["what digit is this, 1?"], 128, "beam(beam_size=3)"),
    (["Answer with a word."], 128, "temperature(0.5)"),
  ]


def test_a_task_without_a_prompt_is_named_once(module, model, caplog):
  module._warn.cache_clear()
  with caplog.at_level(logging.WARNING):
    for _ in range(2):
      model._ask(request("mine", 0, {}))
      model._ask(request("textvqa_val", 0, {}))
  (record,) = caplog.records
  assert record.getMessage() == ("mine: asked in the words of lmms-eval")


def test_a_prompt_of_ones_own(module, model, monkeypatch):
  monkeypatch.setattr(model, "_prompt", "{question} {nothing}")
  with pytest.raises(ValueError, match=r"mine: its documents have no 'nothi.*"):
    model._ask(request("mine", 0, {}))
  monkeypatch.setattr(model, "_prompt", "answer de {question}")
  prompt, _ = model._ask(request("textvqa_val", 4, {}))
  assert prompt == "answer de what digit is this, 4?"


def test_losses_are_those_of_the_perplexity(model, documents):
  greedy = answers(documents[:1], "caption en", max_decode_len=32)[0]
  asked = [(0, greedy), (0, f" {greedy}"), (1, "a barn"), (0, lambda doc: "7")]
  results = model.loglikelihood(
    [request("textcaps_val_lite", i, answer) for i, answer in asked]
  )
  found = [result.text for result in results]
  assert [is_greedy for _, is_greedy in found] == [True, True, False, False]
  assert found[0] == found[1]
  texts = [answer if isinstance(answer, str) else "7" for _, answer in asked]
  for (loss, _), (i, _), text in zip(found, asked, texts, strict=True):
    assert loss == pytest.approx(
      nll(model, documents[i]["image"], text.strip()), rel=1e-4
    )


def nll(model, image, text):
  """Of the project's own evaluator."""
  from paligemma.data import image as image_lib
  from paligemma.data import pictures, sequence

  arrays = sequence.training(model._tok, "caption en", text, 40)
  to_model = image_lib.PREPROCESSING["reference"]
  pixels = to_model(pictures.pixels(image), (56, 56))
  batch = {k: v[None] for k, v in {**arrays, "image": pixels}.items()}
  sums = perplexity._token_sums(model._model, model._params, batch)
  return float(sums[0][0])


def test_several_rounds(model):
  with pytest.raises(ValueError, match="answers one question, in one round"):
    model.generate_until_multi_round([])


def test_the_entry_point_names_the_class(module):
  manifest = integrations.lmms_eval_models()
  assert manifest.model_id == "paligemma"
  path, _, name = manifest.simple_class_path.rpartition(".")
  assert getattr(sys.modules[path], name) is module.PaliGemma
  assert module.PaliGemma.is_simple
