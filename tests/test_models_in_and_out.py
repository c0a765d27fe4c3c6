"""Every kind of model, every way out and back: the same, or a line that helps.

Kind x way out x way back. Where a way back exists the model gives the logits
that it gave, and its tree and settings are what they were.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import init, io, quantization, tree
from paligemma.checkpoints.huggingface import write as huggingface_write
from paligemma.lora import apply as lora
from paligemma.models import paligemma as paligemma_model
from scripts import convert

RES = 28
IMG = dict(width=12, depth=2, mlp_dim=20, num_heads=3)
LLM = dict(
  width=18, depth=3, mlp_dim=22, num_heads=6, num_kv_heads=2, head_dim=10
)
ROWS = 1805  # of the tiny table and 13 more, in the resized vocabulary
IMAGE_TOKEN = 1792


def drawn(model):
  rng = np.random.default_rng(0)
  return tree.unflatten(
    {
      name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
      for name, leaf in init.shapes(model, RES).items()
    }
  )


def plain(folder, variant="paligemma_tiny", **llm):
  model = paligemma_model.make(variant, img=IMG, llm=LLM | llm)
  return model, drawn(model)


def with_window(folder):
  return plain(
    folder, "paligemma2_tiny", sliding_window=3, final_logits_softcap=30.0
  )


def rounded(folder, kind):
  paligemma.save(folder / "whole.npz", *with_window(folder))
  return paligemma.load(folder / "whole.npz", quantize=kind)


def rounded_bfloat16(folder):
  paligemma.save(folder / "whole.npz", *with_window(folder))
  return paligemma.load(folder / "whole.npz", "bfloat16", quantize="int8")


def adapted(model, params):
  model, params = paligemma.enable_lora(
    model, params, rank=2, targets=("llm/.*", "img/head")
  )
  rng = np.random.default_rng(1)
  flat = {
    name: rng.normal(0, 0.3, x.shape).astype(np.float32)
    if name.endswith("/b") and lora.is_adapter([name])[name]
    else x
    for name, x in tree.flatten(params).items()
  }
  return model, tree.unflatten(flat)


def with_adapters(folder):
  return adapted(*plain(folder))


def rounded_with_adapters(folder):
  return adapted(*rounded(folder, "int4"))


def resized(folder):
  """A folder of Hugging Face whose image token is not the last row."""
  model, params = plain(folder, vocab_size=ROWS)
  huggingface_write.save(
    folder / "source",
    tree.flatten(params),
    **{k: io.model_fields(model)[k] for k in ("img", "llm")},
    metadata={
      "preprocessing": "hf",
      "image_token_id": IMAGE_TOKEN,
      "generation": {"max_new_tokens": 77, "eos_token_id": [1, 107]},
      "processor": {"do_convert_rgb": None, "do_pad": False},
      "chat_template": "{{ bos_token }}\n{# ünicode #}",
    },
  )
  return paligemma.load(folder / "source")


def gemma_alone(folder, generation=2):
  model, params = plain(folder) if generation == 1 else with_window(folder)
  return paligemma_model.Model(img=None, llm=model.llm), {"llm": params["llm"]}


def in_dtype(folder, dtype):
  paligemma.save(folder / "whole.npz", *with_window(folder))
  return paligemma.load(folder / "whole.npz", dtype)


def computing_in(folder, dtype):
  """Parameters in float32, products in another dtype, as a run has them."""
  model, params = plain(folder)
  return computed_in(dtype, model), params


def computed_in(dtype, model):
  llm = model.llm.clone(dtype=dtype)
  return model.clone(img=model.img and model.img.clone(dtype=dtype), llm=llm)


KINDS = {
  "plain": plain,
  "window": with_window,
  "mha": functools.partial(plain, num_kv_heads=6),
  "int8": functools.partial(rounded, kind="int8"),
  "int4": functools.partial(rounded, kind="int4"),
  "nf4": functools.partial(rounded, kind="nf4"),
  "int8 in bfloat16": rounded_bfloat16,
  "bfloat16": functools.partial(in_dtype, dtype="bfloat16"),
  "float16": functools.partial(in_dtype, dtype="float16"),
  "computing in bfloat16": functools.partial(computing_in, dtype="bfloat16"),
  "resized vocabulary": resized,
  "Gemma 1 alone": functools.partial(gemma_alone, generation=1),
  "Gemma 2 alone": gemma_alone,
  "adapters": with_adapters,
  "int4 with adapters": rounded_with_adapters,
}
ADAPTED = [kind for kind in KINDS if "adapters" in kind]
# As folders of Hugging Face, which hold matrices in full precision and are
# computed in the dtype of these.
COMPUTED_IN_FLOAT32 = (*quantization.KINDS, *(k for k in KINDS if " in b" in k))


def logits(model, params):
  rng = np.random.default_rng(2)
  image = None
  if model.img is not None:
    image = rng.uniform(-1, 1, (1, RES, RES, 3)).astype(np.float32)
  text = rng.integers(3, 97, (1, 7))
  return np.asarray(forward(model, params, image, text))


@functools.partial(jax.jit, static_argnums=0)  # equal models compile once
def forward(model, params, image, text):
  found, _ = model.apply({"params": params}, image, text, jnp.ones_like(text))
  return found.astype(jnp.float32)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
  """Kind -> model, parameters, logits; made once each."""

  @functools.cache
  def make(kind):
    model, params = KINDS[kind](tmp_path_factory.mktemp("kind"))
    return model, params, logits(model, params)

  return make


def path_of(folder, format):
  return folder / ("model.npz" if format == "npz" else "model")


@pytest.mark.parametrize("format", io.WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_or_told(kinds, kind, format, tmp_path):
  model, params, expected = kinds(kind)
  path = path_of(tmp_path, format)
  if kind in ADAPTED:
    with pytest.raises(ValueError, match=r"merge_lora.*save_adapter") as error:
      paligemma.save(path, model, params, format=format)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    return
  paligemma.save(path, model, params, format=format)
  found_model, found = paligemma.load(path)
  if format == "huggingface" and kind in COMPUTED_IN_FLOAT32:
    assert not any(map(quantization.split, tree.flatten(found)))
    model = computed_in("float32", model)
    expected = logits(model, params)
  assert found_model == model
  if model.metadata:
    assert found_model.metadata == model.metadata
  np.testing.assert_allclose(logits(found_model, found), expected, atol=1e-5)


@pytest.mark.parametrize("back", io.WRITERS)
@pytest.mark.parametrize("format", io.WRITERS)
@pytest.mark.parametrize(
  "kind", ["window", "resized vocabulary", "Gemma 2 alone"]
)
def test_converted_there_and_back(kinds, kind, format, back, tmp_path):
  model, params, _ = kinds(kind)
  first, second = path_of(tmp_path / "a", format), path_of(tmp_path / "b", back)
  paligemma.save(first, model, params, format=format)
  convert.convert(first, second, format=back)
  found_model, found = paligemma.load(second)
  assert found_model == model
  metadata = {**found_model.metadata}
  assert {k: metadata[k] for k in model.metadata} == dict(model.metadata)
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("suffix", [".safetensors", ""])
@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_come_back(kinds, kind, suffix, tmp_path):
  model, params, expected = kinds(kind)
  paligemma.save_adapter(tmp_path / f"a{suffix}", model, params)
  base = lora.with_lora(model, None)
  _, weights = tree.partition(
    tree.flatten(params), lora.is_adapter(tree.flatten(params))
  )
  found = paligemma.load_adapter(
    tmp_path / f"a{suffix}", base, tree.unflatten(weights)
  )
  np.testing.assert_allclose(logits(*found), expected, atol=1e-5)


@pytest.mark.parametrize("format", io.WRITERS)
@pytest.mark.parametrize("kind", ADAPTED)
def test_merged_adapters_come_back(kinds, kind, format, tmp_path):
  model, params, expected = kinds(kind)
  merged = paligemma.merge_lora(model, params)
  path = path_of(tmp_path, format)
  paligemma.save(path, *merged, format=format)
  found = logits(*paligemma.load(path))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(found, logits(*merged), atol=1e-5)


class TestResizedVocabulary:
  def test_the_folder_says_what_it_said(self, kinds, tmp_path):
    model, params, _ = kinds("resized vocabulary")
    paligemma.save(tmp_path / "a", model, params, format="huggingface")
    read = functools.partial(read_json, tmp_path / "a")
    config = read("config.json")
    assert config["image_token_index"] == IMAGE_TOKEN
    assert config["text_config"]["vocab_size"] == ROWS
    assert read("generation_config.json") == {
      "bos_token_id": 2,
      "eos_token_id": [1, 107],
      "pad_token_id": 0,
      "max_new_tokens": 77,
    }
    processor = read("preprocessor_config.json")
    assert (processor["resample"], processor["do_pad"]) == (3, False)
    template = (tmp_path / "a/chat_template.jinja").read_bytes()
    assert template == "{{ bos_token }}\n{# ünicode #}".encode()

  def test_at_another_resolution(self, kinds, tmp_path):
    model, params, _ = kinds("resized vocabulary")
    paligemma.save(tmp_path / "a.npz", model, params)
    larger = paligemma.load(tmp_path / "a.npz", res=56)
    paligemma.save(tmp_path / "b", *larger, format="huggingface")
    processor = read_json(tmp_path / "b", "preprocessor_config.json")
    assert processor["size"] == {"height": 56, "width": 56}
    assert processor["image_seq_length"] == 16


def read_json(folder, name):
  return json.loads((folder / name).read_text())
