"""Any format in, any format out: the same model and the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import init, io, quantization, tree
from paligemma.checkpoints import formats, leaves, npz, presets
from paligemma.data import sequence
from paligemma.decoding import decode
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from tests.same_trees import assert_same

RES = 28
IMG = dict(width=12, depth=2, mlp_dim=20, num_heads=3)
TABLE = "llm/embedder/input_embedding"
LLM = dict(
  width=18, depth=3, mlp_dim=22, num_heads=6, num_kv_heads=2, head_dim=10
)


def random(model, res=RES):
  rng = np.random.default_rng(0)
  return tree.unflatten(
    {
      name: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
      for name, leaf in init.shapes(model, res).items()
    }
  )


@pytest.fixture(scope="module")
def model():
  """PaliGemma 2 with a window, as Hugging Face runs it."""
  llm = dict(LLM, sliding_window=5, final_logits_softcap=30.0)
  return paligemma_model.make("paligemma2_tiny", img=IMG, llm=llm)


@pytest.fixture(scope="module")
def params(model):
  return random(model)


@pytest.fixture(scope="module", params=sorted(io.WRITERS))
def saved(request, model, params, tmp_path_factory):
  """Format, and path of the model in it."""
  suffix = ".npz" if request.param == "npz" else ""
  path = tmp_path_factory.mktemp("saved") / f"model{suffix}"
  paligemma.save(path, model, params, format=request.param)
  return request.param, path


def test_saved_and_loaded_is_itself(saved, model, params):
  calls = []
  found_model, found = paligemma.load(
    saved[1], progress=lambda *call: calls.append(call)
  )
  assert_same(found, params)
  assert found_model == model
  done, totals = zip(*calls, strict=True)
  assert set(totals) == {sum(x.nbytes for x in jax.tree.leaves(params))}
  assert (done[0], done[-1]) == (0, totals[0])
  assert len(set(done)) == len(jax.tree.leaves(params)) + 1


def test_a_field_is_overridden(saved):
  model, _ = paligemma.load(saved[1], llm=dict(sliding_window=7))
  assert model.llm.sliding_window == 7
  with pytest.raises(ValueError, match=r'unknown decoder field "windows"'):
    paligemma.load(saved[1], llm=dict(windows=7))
  with pytest.raises(ValueError, match=r'unknown image tower field "pool"'):
    paligemma.load(saved[1], img=dict(pool="map"))


def test_cast_on_the_way_out(model, params, tmp_path):
  paligemma.save(tmp_path / "a.npz", model, params, dtype="bfloat16")
  _, found = paligemma.load(tmp_path / "a.npz")
  assert_same(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_split_over_a_mesh(saved, params):
  mesh = sharding.make_mesh(data=2, model=4)
  _, found = paligemma.load(saved[1], mesh=mesh)
  table = found["llm"]["embedder"]["input_embedding"]
  assert table.addressable_shards[0].data.size == table.size // 8
  assert_same(found, params)


def test_another_resolution(saved, params):
  model, found = paligemma.load(saved[1], res=56)
  assert found["img"]["pos_embedding"].shape == (1, 16, 12)
  logits, _ = model.apply(
    {"params": found},
    np.zeros((1, 56, 56, 3), np.float32),
    np.ones((1, 3), np.int32),
    np.ones((1, 3), np.int32),
  )
  assert np.isfinite(logits).all()
  _, same = paligemma.load(saved[1], res=RES)
  assert_same(same, params)


def test_random_weights_of_a_file(saved, params):
  _, found = paligemma.load(saved[1], load_weights=False, seed=3)
  shapes = jax.tree.map(jnp.shape, (found, params))
  assert shapes[0] == shapes[1]
  _, again = paligemma.load(saved[1], load_weights=False, seed=3)
  assert_same(again, found)


def test_random_weights_of_a_decoder_alone():
  small = {"depth": 1, "width": 6, "mlp_dim": 7, "head_dim": 2}
  model, params = paligemma.load(
    "gemma2_instruct_2b_en", load_weights=False, llm=small
  )
  assert model.img is None
  assert params["llm"]["embedder"]["input_embedding"].shape == (256_000, 6)


def test_random_weights_of_a_preset(monkeypatch):
  small = dataclasses.replace(
    presets.get("paligemma2_3b_pt_448"), variant="paligemma2_tiny", res=RES
  )
  monkeypatch.setattr(
    presets, "PRESETS", {**presets.PRESETS, "paligemma2_3b_pt_448": small}
  )
  model, params = paligemma.load(
    "paligemma2_3b_pt_448", "bfloat16", llm=LLM, load_weights=False
  )
  assert model.llm.dtype == "bfloat16"
  shapes = jax.tree.map(jnp.shape, tree.flatten(params))
  expected = {n: x.shape for n, x in init.shapes(model, RES).items()}
  assert shapes == expected
  assert params["llm"]["embedder"]["input_embedding"].dtype == jnp.bfloat16


def test_formats_are_named(saved):
  format, path = saved
  names = {"npz": "big_vision npz", "huggingface": "Hugging Face"}
  assert formats.detect(path) == names.get(format, "Orbax")
  assert formats.open(path).describe().startswith(f"{path}: ")


def test_no_format(model, params, tmp_path):
  with pytest.raises(ValueError, match="cannot tell the format from the name"):
    paligemma.save(tmp_path / "a", model, params)
  with pytest.raises(
    ValueError, match=r'unknown format "hugging_face".*Did yo'
  ):
    paligemma.save(tmp_path / "a", model, params, format="hugging_face")
  assert not list(tmp_path.iterdir())
  (tmp_path / "notes.txt").write_text("hello")
  with pytest.raises(ValueError, match=r"no checkpoint, expected one of: a \."):
    paligemma.load(tmp_path)
  message = 'no such file or folder, nor the name of a preset. Did you mean "pa'
  with pytest.raises(ValueError, match=message):
    paligemma.load("paligemma2_3b_pt_225")


@pytest.fixture(scope="module")
def paths(params, tmp_path_factory):
  """A SigLIP npz and a decoder with Gemma's vocabulary, no <loc> and <seg>."""
  folder = tmp_path_factory.mktemp("towers")
  flat = tree.flatten(params)
  siglip = {n: x for n, x in flat.items() if n.startswith("img/")}
  siglip.pop("img/head/kernel"), siglip.pop("img/head/bias")
  siglip |= {
    "img/MAPHead_0/probe": np.zeros((1, 1, 12), np.float32),
    "txt/head/bias": np.zeros(7, np.float32),
    "t": np.zeros(1, np.float32),
    "b": np.zeros(1, np.float32),
  }
  npz.save(folder / "siglip.npz", siglip)
  gemma = {n: x for n, x in flat.items() if n.startswith("llm/")}
  gemma[TABLE] = np.resize(gemma[TABLE], (256_000, 18))
  npz.save(folder / "gemma.npz", gemma)
  return {"img": folder / "siglip.npz", "llm": folder / "gemma.npz"}


class TestTwoTowers:
  def test_meet(self, paths, params):
    model, found = paligemma.load(paths)
    assert model.img.num_classes == 18
    table = found["llm"]["embedder"].pop("input_embedding")
    head = found["img"].pop("head")
    expected = jax.tree.map(lambda x: x, params)
    del expected["llm"]["embedder"], found["llm"]["embedder"]
    del expected["img"]["head"]
    old = npz.load(paths["llm"])[TABLE]
    assert_same(found, expected)
    assert table.shape == (257_152, 18)
    np.testing.assert_array_equal(table[: len(old)], old)
    assert np.std(table[len(old) :]) == pytest.approx(0.02, rel=0.01)
    np.testing.assert_array_equal(head["kernel"], np.zeros((12, 18)))
    np.testing.assert_array_equal(head["bias"], np.zeros(18))

  def test_what_was_left_out_and_drawn_is_said(self, paths):
    said = formats.open(paths).describe()
    assert "left out: img/MAPHead_0/probe, txt/head/bias, t, b" in said
    assert "in no file: img/head/kernel, img/head/bias, llm/embed" in said

  def test_a_subtree_is_a_tower_too(self, paths):
    whole = formats.open(paths).leaves
    part = formats.open({**paths, "img": f"{paths['img']}:img"}).leaves
    assert part.keys() == whole.keys()

  def test_a_decoder_of_another_vocabulary_is_left_as_it_is(
    self, paths, params, tmp_path
  ):
    flat = tree.flatten(params)
    gemma = {n: x for n, x in flat.items() if n.startswith("llm/")}
    npz.save(tmp_path / "gemma.npz", gemma)
    both = formats.open({**paths, "llm": tmp_path / "gemma.npz"})
    np.testing.assert_array_equal(both.leaves[TABLE].read(), flat[TABLE])
    assert both.created == ("img/head/kernel", "img/head/bias")

  def test_a_head_of_siglip_is_no_projector(self, paths, tmp_path):
    siglip = dict(npz.load(paths["img"]))
    siglip["img/head/kernel"] = np.ones((12, 18), np.float32)
    siglip["img/head/bias"] = np.ones(18, np.float32)
    npz.save(tmp_path / "siglip.npz", siglip)
    both = formats.open({**paths, "img": tmp_path / "siglip.npz"})
    assert "img/head/kernel" in both.created
    assert ", t, b, img/head/... (2); in no file: " in both.describe()

  def test_a_head_that_fits_is_kept(self, params, model, paths, tmp_path):
    paligemma.save(tmp_path / "a.npz", model, params)
    both = formats.open({"img": tmp_path / "a.npz", "llm": paths["llm"]})
    head = both.leaves["img/head/kernel"].read()
    np.testing.assert_array_equal(head, params["img"]["head"]["kernel"])

  def test_are_quantized_when_they_meet(self, paths, tmp_path):
    _, params = paligemma.load(paths, quantize="int4")
    assert params["img"]["head"]["kernel"]["int4"].shape == (12, 9)
    table = params["llm"]["embedder"]["input_embedding"]
    assert table["int8"].shape == (257_152, 18)
    flat = tree.flatten(params)
    image = {n: x for n, x in flat.items() if n.startswith("img/")}
    npz.save(tmp_path / "img.npz", image)
    decoder = {n: x for n, x in flat.items() if n.startswith("llm/")}
    npz.save(tmp_path / "llm.npz", decoder)
    both = {"img": tmp_path / "img.npz", "llm": tmp_path / "llm.npz"}
    assert formats.open(both).created == ()
    assert_same(paligemma.load(both)[1], params)

  def test_few_rows_of_a_quantized_decoder(self, paths, tmp_path):
    gemma = dict(npz.load(paths["llm"]))
    both = quantization.quantize(TABLE, gemma.pop(TABLE), "int8")
    gemma |= {f"{TABLE}/{part}": x for part, x in both.items()}
    npz.save(tmp_path / "gemma.npz", gemma)
    message = r"gemma\.npz: .*input_embedding is quantized and has \d+ rows"
    with pytest.raises(ValueError, match=message):
      paligemma.load({**paths, "llm": tmp_path / "gemma.npz"})

  def test_errors(self, paths):
    with pytest.raises(ValueError, match=r"gemma\.npz: holds no image tower"):
      paligemma.load({"img": paths["llm"], "llm": paths["llm"]})
    with pytest.raises(ValueError, match=r"siglip\.npz: holds no decoder, no"):
      paligemma.load({"img": paths["img"], "llm": paths["img"]})
    with pytest.raises(ValueError, match=r"siglip\.npz: cannot tell the sizes"):
      paligemma.load(paths["img"])
    with pytest.raises(ValueError, match=r"towers .*\['llm'\], expected"):
      paligemma.load({"llm": paths["llm"]})


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
  """Gemma 2 as loaded from a file that holds nothing else."""
  llm = dict(LLM, sliding_window=4)
  whole = paligemma_model.make("paligemma2_tiny", img=IMG, llm=llm)
  alone = paligemma_model.Model(img=None, llm=whole.llm)
  path = tmp_path_factory.mktemp("gemma") / "gemma.npz"
  npz.save(path, tree.flatten(random(alone)))
  return paligemma.load(path, llm=dict(sliding_window=4))


@pytest.fixture(scope="module")
def tokenizer():
  folder = paligemma.__path__[0]
  return paligemma.Tokenizer(f"{folder}/assets/tiny_tokenizer.model")


class TestDecoderAlone:
  def test_has_the_soft_cap_of_gemma(self, gemma):
    model, params = gemma
    assert model.img is None
    assert model.llm.final_logits_softcap == 30.0
    assert list(params) == ["llm"]

  def test_prefill_and_extend_are_the_forward_pass(self, gemma):
    model, params = gemma
    variables = {"params": params}
    text = np.random.default_rng(0).integers(3, 97, (2, 11))
    causal = np.ones_like(text)
    expected, _ = model.apply(variables, None, text, causal)
    (x, mask, ar), _ = model.apply(
      variables,
      None,
      text[:, :7],
      mask_ar=causal[:, :7],
      method="embed_image_and_text",
    )
    logits, cache = model.apply(
      variables,
      x,
      mask,
      ar,
      cache_size=11,
      method="prefill_cache",
      mutable=["cache"],
    )
    np.testing.assert_allclose(logits[:, 0], expected[:, 6], atol=1e-5)
    for t in range(7, 11):
      x, _ = model.apply(variables, text[:, t : t + 1], method="embed_text")
      logits, cache = model.apply(
        variables | cache, x, method="extend_cache", mutable=["cache"]
      )
      np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-5)

  def test_generates_text(self, gemma, tokenizer):
    model, params = gemma
    prompts = ["what", "caption en"]
    found = paligemma.generate(
      model, params, tokenizer, None, prompts, max_decode_len=5
    )
    for prompt, answer in zip(prompts, found, strict=True):
      row = sequence.prompt(tokenizer, prompt, 13, causal=True)
      batch = {name: array[None] for name, array in row.items()}
      decoded = decode.generate(model, params, batch, max_decode_len=5)
      count = int(decoded.num_tokens[0])
      assert answer == tokenizer.decode(decoded.tokens[0][:count].tolist())
    one = paligemma.generate(
      model, params, tokenizer, None, "what", max_decode_len=5
    )
    assert one == found[:1]

  def test_takes_no_image(self, gemma, tokenizer):
    with pytest.raises(ValueError, match="1 images for a decoder without imag"):
      paligemma.generate(*gemma, tokenizer, [b""], ["what"])

  def test_as_a_hugging_face_folder(self, gemma, tmp_path):
    paligemma.save(tmp_path / "a", *gemma, format="huggingface")
    model, params = paligemma.load(tmp_path / "a")
    assert model == gemma[0]
    assert_same(params, gemma[1])


def test_leaves_are_written_as_well_as_arrays(model, params, tmp_path):
  lazily = {n: leaves.Leaf.of(x) for n, x in tree.flatten(params).items()}
  fields = io.model_fields(model)
  for format in io.WRITERS:
    path = tmp_path / (format if format != "npz" else "a.npz")
    io.write(path, lazily, fields, format=format)
    assert_same(paligemma.load(path)[1], params)


LINEAR = "llm/layers/mlp/linear"


@pytest.fixture(scope="module")
def whole(model, params, tmp_path_factory):
  """Path of the model in full precision."""
  path = tmp_path_factory.mktemp("whole") / "a.npz"
  paligemma.save(path, model, params)
  return path


@pytest.fixture(scope="module", params=quantization.KINDS)
def rounded(request, whole):
  """Kind, model and parameters."""
  return request.param, *paligemma.load(whole, quantize=request.param)


class TestQuantized:
  def test_is_what_quantize_gives(self, rounded, params):
    kind, _, found = rounded
    expected = {}
    for name, array in tree.flatten(params).items():
      if quantization.summed_axes(name) is None:
        expected[name] = array
        continue
      of_this = "int8" if name.endswith("input_embedding") else kind
      both = quantization.quantize(name, array, of_this)
      expected |= {f"{name}/{part}": x for part, x in both.items()}
    assert_same(found, expected)

  def test_from_any_format(self, saved):
    _, found = paligemma.load(saved[1], quantize="int4")
    assert "int4" in found["llm"]["layers"]["mlp"]["linear"]

  @pytest.mark.parametrize("format", ["npz", "orbax"])
  def test_saved_and_loaded_is_itself(self, rounded, format, tmp_path):
    kind, model, params = rounded
    path = tmp_path / ("a.npz" if format == "npz" else "a")
    paligemma.save(path, model, params, format=format)
    for options in ({}, {"quantize": kind}):
      again_model, again = paligemma.load(path, **options)
      assert again_model == model
      assert_same(again, params)
    other = quantization.KINDS[quantization.KINDS.index(kind) - 1]
    message = f"a.*: is {kind} in the files, expected {other} or full precis"
    with pytest.raises(ValueError, match=message):
      paligemma.load(path, quantize=other)

  def test_a_hugging_face_folder_has_the_values(self, rounded, tmp_path):
    _, *loaded = rounded
    paligemma.save(tmp_path / "a", *loaded, format="huggingface")
    found_model, found = paligemma.load(tmp_path / "a")
    assert found_model == loaded[0]
    whole = jax.tree.map(
      lambda x: quantization.dequantize(x, np.float32) if is_pair(x) else x,
      loaded[1],
      is_leaf=is_pair,
    )
    assert_same(found, whole)

  def test_computes_what_its_matrices_do(self, rounded):
    _, model, params = rounded
    whole = jax.tree.map(
      lambda x: quantization.dequantize(x, np.float32) if is_pair(x) else x,
      params,
      is_leaf=is_pair,
    )
    image = np.random.default_rng(1).uniform(-1, 1, (2, RES, RES, 3))
    text = np.random.default_rng(2).integers(3, 97, (2, 5))
    inputs = image.astype(np.float32), text, np.ones_like(text)
    expected, _ = model.apply({"params": whole}, *inputs)
    found, _ = model.apply({"params": params}, *inputs)
    np.testing.assert_allclose(found, expected, atol=1e-4)

  def test_layers_apart_and_stacked_again(self, rounded, whole, tmp_path):
    kind, _, params = rounded
    apart, again = (
      dict(img=x, llm=x) for x in ({"scan": False}, {"scan": True})
    )
    model, loop = paligemma.load(whole, quantize=kind, **apart)
    assert kind in loop["llm"]["layers"]["1"]["mlp"]["linear"]
    paligemma.save(tmp_path / "loop.npz", model, loop)
    model, found = paligemma.load(tmp_path / "loop.npz", **again)
    assert_same(found, params)
    paligemma.save(tmp_path / "scan.npz", model, params)
    _, found = paligemma.load(tmp_path / "scan.npz", **apart)
    assert_same(found, loop)

  def test_split_over_a_mesh(self, rounded, whole):
    kind, _, params = rounded
    mesh = sharding.make_mesh(data=8, model=1)
    _, found = paligemma.load(whole, quantize=kind, mesh=mesh)
    assert_same(found, params)
    table = found["llm"]["embedder"]["input_embedding"]["int8"]
    assert table.addressable_shards[0].data.size == table.size // 8

  def test_random_weights(self, rounded, whole):
    kind, _, params = rounded
    _, found = paligemma.load(whole, quantize=kind, load_weights=False)
    shapes = jax.eval_shape(lambda: (found, params))
    assert shapes[0] == shapes[1]


def is_pair(x):
  return isinstance(x, dict) and not x.keys().isdisjoint(quantization.KINDS)


class TestQuantizedFile:
  @pytest.fixture
  def arrays(self, params):
    """One matrix in int8, all else in full precision."""
    flat = dict(tree.flatten(params))
    both = quantization.quantize(LINEAR, flat.pop(LINEAR), "int8")
    return flat | {f"{LINEAR}/{n}": np.asarray(x) for n, x in both.items()}

  def test_some_matrices_alone(self, arrays, tmp_path):
    npz.save(tmp_path / "a.npz", arrays)
    _, found = paligemma.load(tmp_path / "a.npz")
    assert_same(found, arrays)
    _, found = paligemma.load(tmp_path / "a.npz", quantize="int8")
    found = tree.flatten(found)
    np.testing.assert_array_equal(
      found[f"{LINEAR}/int8"], arrays[f"{LINEAR}/int8"]
    )
    assert "llm/layers/mlp/gating_einsum/int8" in found

  def test_dtype_is_of_the_rest(self, arrays, tmp_path):
    npz.save(tmp_path / "a.npz", arrays, dtype="bfloat16")
    found_model, found = paligemma.load(tmp_path / "a.npz")
    assert found_model.llm.dtype == "bfloat16"
    found = tree.flatten(found)
    assert found[f"{LINEAR}/scale"].dtype == np.float32
    assert found[f"{LINEAR}/int8"].dtype == np.int8
    found_model, found = paligemma.load(tmp_path / "a.npz", "float16")
    assert found_model.llm.dtype == "float16"
    found = tree.flatten(found)
    assert found[f"{LINEAR}/scale"].dtype == np.float32
    assert found["llm/layers/mlp/gating_einsum"].dtype == np.float16
    assert found["llm/final_norm/scale"].dtype == np.float32

  def test_computes_in_the_dtype_of_the_norms(self, rounded, tmp_path):
    _, model, params = rounded
    path = tmp_path / "a.npz"
    paligemma.save(path, model, params, dtype="bfloat16")
    found_model, found = paligemma.load(path)
    assert found_model.llm.dtype == found_model.img.dtype == "bfloat16"
    table = found["llm"]["embedder"]["input_embedding"]
    assert_same(table, params["llm"]["embedder"]["input_embedding"])

  @pytest.mark.parametrize(
    ("lost", "added", "message"),
    [
      ("scale", {}, "linear/scale: missing, llm/layers/mlp/linear/int8 is no"),
      ("int8", {}, "linear/scale: has no values beside it, expected llm/layer"),
      (
        "scale",
        {f"{LINEAR}/scale": np.ones((3, 1, 17), np.float32)},
        r"scale: shape \(3, 1, 17\), expected \(3, 1, 18\) beside int8",
      ),
      (
        "",
        {f"{LINEAR}/int4": np.zeros((3, 22, 9), np.uint8)},
        "linear: is there as int4 and as int8, expected one of them",
      ),
      (
        "int8",
        {f"{LINEAR}/int8": np.zeros((3, 22, 18), np.int16)},
        "linear/int8: dtype int16, expected int8",
      ),
    ],
  )
  def test_damage(self, arrays, lost, added, message, tmp_path):
    flat = {n: x for n, x in arrays.items() if n != f"{LINEAR}/{lost}"} | added
    npz.save(tmp_path / "a.npz", flat)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}") as error:
      paligemma.load(tmp_path / "a.npz")
    assert len(str(error.value).splitlines()) == 1

  def test_unknown_kind(self, whole):
    with pytest.raises(ValueError, match='unknown quantization "int2", expect'):
      paligemma.load(whole, quantize="int2")

  def test_integers_are_no_checkpoint(self, params, tmp_path):
    flat = {n: x.astype(np.int8) for n, x in tree.flatten(params).items()}
    npz.save(tmp_path / "a.npz", flat)
    for kind in (None, "int8"):
      with pytest.raises(ValueError, match="found dtype int8, expected flo"):
        paligemma.load(tmp_path / "a.npz", quantize=kind)

  def test_an_odd_axis(self, tmp_path):
    llm = dict(LLM, mlp_dim=21)
    odd = paligemma_model.make("paligemma2_tiny", img=IMG, llm=llm)
    paligemma.save(tmp_path / "a.npz", odd, random(odd))
    message = r"a\.npz: .*gating_einsum: shape \(3, 2, 18, 21\), int4 needs a l"
    with pytest.raises(ValueError, match=message):
      paligemma.load(tmp_path / "a.npz", quantize="int4")
    paligemma.load(tmp_path / "a.npz", quantize="int8")
