"""What is exported answers as paligemma.generate does, without paligemma."""

import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax.export
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma import init
from paligemma.checkpoints import npz
from paligemma.data import image, image_files
from paligemma.models import siglip
from scripts import convert, export
from scripts.exports import onnx, programs, stablehlo

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "paligemma/assets/tiny.npz"
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
SIZES = {"batch_size": 2, "text_len": 16, "max_decode_len": 7}
PROMPT = "answer en what digit is this?"

# Runs a file while nothing of this project, nor what it depends on beside JAX,
# can be imported.
BARE = """
import runpy, sys
class Nothing:
  def find_spec(self, name, *_):
    if name.partition(".")[0] in {
      "paligemma", "scripts", "trainers", "configs", "flax", "qwix", "etils",
      "einops", "jaxtyping", "optax", "orbax", "safetensors", "google",
    }:
      raise ImportError(name)
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Pictures of several sizes and modes, one of them to be turned."""
  folder = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  made = []
  for i, (size, mode) in enumerate(
    [((61, 43), "RGB"), ((37, 59), "RGBA"), ((56, 56), "L")]
  ):
    channels = len(mode)
    pixels = rng.integers(0, 256, (*size, channels), np.uint8).squeeze()
    made.append(folder / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6 if i == 0 else 1
    Image.fromarray(pixels, mode).save(made[-1], exif=exif)
  return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "tiny"
  said = export.export(TINY, TOKENIZER, out, **SIZES)
  assert said == f"wrote {out}; its README.md says how to run it"
  return out


def ask_here(prompt, photos, ckpt=TINY, **options):
  model, params = paligemma.load(ckpt, **options)
  tok = paligemma.Tokenizer(TOKENIZER, plain=model.img is None)
  return paligemma.generate(
    model, params, tok, photos, prompt, max_decode_len=SIZES["max_decode_len"]
  )


def run_in(folder):
  """The module run.py of a folder."""
  spec = importlib.util.spec_from_file_location("run", folder / "run.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_without_this_project(exported, photos):
  command = [sys.executable, "-I", "-c", BARE, exported / "run.py"]
  done = subprocess.run(
    [*command, PROMPT, *photos], capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == ask_here(PROMPT, photos)


def test_the_runner_is_short():
  runner = pathlib.Path(stablehlo.__file__).with_name("run.py")
  assert len(runner.read_text().splitlines()) < 80


def test_manifest(exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  assert (manifest["format"], manifest["version"]) == ("paligemma stablehlo", 1)
  assert {k: manifest[k] for k in SIZES} == SIZES
  assert manifest["jax"] == jax.__version__
  assert manifest["tokenizer_sha256"] == (
    hashlib.sha256(TOKENIZER.read_bytes()).hexdigest()
  )
  prefill, step = (
    jax.export.deserialize((exported / f"{name}.bin").read_bytes())
    for name in ("prefill", "step")
  )
  assert prefill.platforms == step.platforms == ("cpu", "cuda", "tpu")
  (_, inputs), _ = jax.tree.unflatten(prefill.in_tree, prefill.in_avals)
  assert manifest["inputs"] == {
    name: {"shape": list(x.shape), "dtype": str(x.dtype)}
    for name, x in inputs.items()
  }
  (params, _, cache), _ = jax.tree.unflatten(step.in_tree, step.in_avals)
  assert manifest["parameters"] == {n: str(x.dtype) for n, x in params.items()}
  assert list(manifest["cache"]) == sorted(cache)
  card = (exported / "README.md").read_text()
  assert "up to 6 months after, or up to 3 weeks before" in card


def test_quantized(tmp_path, photos):
  export.export(TINY, TOKENIZER, tmp_path / "a", quantize="int8", **SIZES)
  runner = run_in(tmp_path / "a")
  assert "llm/embedder/input_embedding/int8" in runner.ABOUT["parameters"]
  found = runner.answer(runner.load(), PROMPT, photos[:2])
  assert found == ask_here(PROMPT, photos[:2], quantize="int8")


@pytest.mark.parametrize("preprocessing", sorted(programs.PREPROCESSING))
def test_pictures_are_prepared_as_here(
  preprocessing, exported, photos, monkeypatch
):
  runner = run_in(exported)
  how = {"side": 56, **programs.PREPROCESSING[preprocessing]}
  monkeypatch.setitem(runner.ABOUT, "image", how)
  for photo in photos:
    pixels = image_files.decode(photo.read_bytes())
    expected = image.PREPROCESSING[preprocessing](pixels, (56, 56))
    difference = np.abs(runner.pixels(photo) - expected)
    assert difference.max() < 1e-5 or np.mean(difference > 1e-5) < 1e-3


def test_bfloat16_and_a_gemma(tmp_path):
  sizes = {"width": 16, "depth": 2, "mlp_dim": 22, "head_dim": 10}
  model, params = paligemma.load(
    "gemma2_2b_en", load_weights=False, llm={**sizes, "vocab_size": 1792}
  )
  paligemma.save(tmp_path / "a.npz", model, params)
  export.export(
    tmp_path / "a.npz", TOKENIZER, tmp_path / "b", dtype="bfloat16", **SIZES
  )
  runner = run_in(tmp_path / "b")
  assert set(runner.ABOUT["parameters"].values()) >= {"bfloat16"}
  (found, _) = runner.answer(runner.load(), "a red circle", [])
  here = ask_here(["a red circle"], None, tmp_path / "a.npz", dtype="bfloat16")
  assert [found] == here


def test_what_cannot_be_exported(tmp_path):
  with pytest.raises(
    ValueError, match="max_decode_len is 0, expected at least"
  ):
    export.export(
      TINY, TOKENIZER, tmp_path / "a", **SIZES | {"max_decode_len": 0}
    )
  with pytest.raises(ValueError, match="exists already, expected a new name"):
    export.export(TINY, TOKENIZER, tmp_path, **SIZES)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("format", "way_out"),
  [
    ("stablehlo", r'pip install "paligemma\[export\]"$'),
    (
      "onnx",
      "missing: jax2onnx, onnx, onnxruntime; pip install --no-deps jax2",
    ),
  ],
)
def test_what_is_not_installed(format, way_out, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match=way_out):
    export.export(TINY, TOKENIZER, tmp_path / "a", format=format, **SIZES)


def test_onnx_is_of_float32(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx, "check", lambda: None)
  with pytest.raises(ValueError, match="float16, but ONNX is written in float"):
    export.export(TINY, TOKENIZER, tmp_path / "a", format="onnx", **SIZES)
  assert not (tmp_path / "a").exists()


def test_calls_are_written_out_for_onnx():
  @jax.custom_jvp
  def same(x):
    return jax.lax.optimization_barrier(x)

  same.defjvps(lambda tangent, *_: tangent)

  @jax.checkpoint
  def layer(x):
    chosen = jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)
    return jax.jit(jnp.tanh)(same(chosen))

  def function(x, y):
    return layer(layer(x)), x + y

  x = np.linspace(0, 1, 7, dtype=np.float32)
  traced = jax.make_jaxpr(function)(x, x)
  again = jax.make_jaxpr(
    lambda *arrays: onnx._evaluate(traced.jaxpr, traced.consts, arrays)
  )(x, x)
  assert [e.primitive.name for e in again.eqns] == ["sin", "tanh"] * 2 + ["add"]
  found = jax.jit(jax.extend.core.jaxpr_as_fun(again))(x, x)
  for a, b in zip(found, function(x, x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_siglip_is_refused(tmp_path):
  shapes = init.shapes(siglip.make("siglip_tiny"), 56)
  zeros = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
  npz.save(tmp_path / "a.npz", zeros)
  with pytest.raises(ValueError, match="holds a SigLIP, which compares"):
    export.export(tmp_path / "a.npz", TOKENIZER, tmp_path / "b", **SIZES)


def test_a_tokenizer_that_the_runner_cannot_read(tmp_path):
  folder = tmp_path / "hf"
  convert.convert(TINY, folder, format="huggingface", tokenizer=TOKENIZER)
  tokenizer = folder / "tokenizer.json"
  with pytest.raises(ValueError, match="expected a SentencePiece file"):
    export.export(TINY, tokenizer, tmp_path / "b", **SIZES)
