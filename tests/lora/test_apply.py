"""Adapters of a model: two paths, one answer; in files and back."""

import functools
import re
import shutil

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import init, parameters, quantization, tree
from paligemma.checkpoints import layouts, safetensors
from paligemma.checkpoints.lora import adapters, peft
from paligemma.lora import apply as lora
from paligemma.lora import config as lora_config
from paligemma.models import paligemma as paligemma_model
from paligemma.training import sharding
from tests.same_trees import assert_same

RES, VOCABULARY = 28, 61
IMG = dict(width=12, depth=2, mlp_dim=17, num_heads=3)
LLM = dict(
  width=14, depth=3, mlp_dim=19, num_heads=6, num_kv_heads=3, head_dim=10
)
ALL = [".*"]
# Of a PaliGemma.
TARGETS = {
  target: path
  for target, path in lora_config.TARGETS.items()
  if not target.startswith("txt/")
}
BLOCK = "img/Transformer/encoderblock"
MHA = f"{BLOCK}/MultiHeadDotProductAttention_0"
# The variant, and the fields of its decoder: queries apart, and fused with
# keys and values.
STYLES = {
  "grouped": ("paligemma2_tiny", LLM),
  "fused": ("paligemma_tiny", LLM | dict(num_heads=3)),
}
IMAGE = np.random.default_rng(0).uniform(-1, 1, (2, RES, RES, 3))
IMAGE = IMAGE.astype(np.float32)
TEXT = np.random.default_rng(0).integers(3, VOCABULARY, (2, 7))


def build(style="grouped", *, scan=True, **overrides):
  variant, llm = STYLES[style]
  return paligemma_model.make(
    variant,
    vocab_size=VOCABULARY,
    img=IMG | dict(scan=scan, **overrides),
    llm=llm | dict(scan=scan, **overrides),
  )


def random(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return tree.unflatten(
    {
      name: rng.normal(0, 0.3, x.shape).astype(np.float32)
      for name, x in tree.flatten(shapes).items()
    }
  )


def is_adapter(name):
  return re.fullmatch(parameters.ADAPTERS, name) is not None


def enable(model, params, **fields):
  """As enable_lora, with adapters that are no longer zero."""
  fields = dict(rank=5, alpha=3.0, targets=ALL) | fields
  model = lora.with_lora(model, lora_config.Lora(**fields))
  shapes = {n: x for n, x in init.shapes(model).items() if is_adapter(n)}
  drawn = tree.flatten(random(shapes, seed=1))
  return model, tree.unflatten(tree.flatten(params) | drawn)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
  return model.apply({"params": params}, IMAGE, TEXT, np.zeros_like(TEXT))[0]


@pytest.fixture(scope="module", params=STYLES)
def base(request):
  model = build(request.param)
  return model, random(init.shapes(model, RES))


@pytest.fixture(scope="module")
def started(base):
  return paligemma.enable_lora(*base, rank=5, alpha=3.0, targets=ALL)


@pytest.fixture(scope="module")
def adapted(base):
  return enable(*base)


@pytest.fixture(scope="module")
def grouped():
  model = build()
  return model, random(init.shapes(model, RES))


def assert_close(found, expected, bound):
  """Relative to the largest number there is."""
  largest = np.abs(expected).max()
  assert largest > 0
  np.testing.assert_allclose(found, expected, rtol=0, atol=bound * largest)


def test_names_and_shapes(base, started):
  model, params = started
  assert (
    model.llm.lora == model.img.lora == lora_config.Lora(5, 3.0, targets=ALL)
  )
  flat = tree.flatten(params)
  new, same = tree.partition(flat, lora.is_adapter(flat))
  assert_same(same, base[1])
  paths = TARGETS.values()
  assert new.keys() == {f"{path}/{x}" for path in paths for x in "ab"}
  for name, array in new.items():
    assert array.dtype == jnp.float32
    assert np.any(array) == name.endswith("a")
    assert array.shape[-1 if name.endswith("a") else -2] == 5


def test_it_answers_as_before(base, started):
  np.testing.assert_array_equal(logits(*started), logits(*base))


def test_the_seed_counts(base, started):
  _, other = paligemma.enable_lora(*base, rank=5, targets=["img/head"], seed=1)
  one, two = (x["img"]["head"]["lora_head"] for x in (started[1], other))
  assert not np.any(one["a"] == two["a"])


# Target -> its matrix, which part of it, and the axes of inputs, outputs and
# matrix.
_LLM = "llm/layers"
_MHA = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"
_MLP = "img/Transformer/encoderblock/MlpBlock_0"
PLAIN = {
  "llm/attn/out": (f"{_LLM}/attn/attn_vec_einsum/w", None, "N H", "D", "N H D"),
  "llm/mlp/gate": (f"{_LLM}/mlp/gating_einsum", 0, "D", "F", "D F"),
  "llm/mlp/up": (f"{_LLM}/mlp/gating_einsum", 1, "D", "F", "D F"),
  "llm/mlp/down": (f"{_LLM}/mlp/linear", None, "F", "D", "F D"),
  "img/attn/q": (f"{_MHA}/query/kernel", None, "D", "N H", "D N H"),
  "img/attn/k": (f"{_MHA}/key/kernel", None, "D", "N H", "D N H"),
  "img/attn/v": (f"{_MHA}/value/kernel", None, "D", "N H", "D N H"),
  "img/attn/out": (f"{_MHA}/out/kernel", None, "N H", "D", "N H D"),
  "img/mlp/up": (f"{_MLP}/Dense_0/kernel", None, "D", "F", "D F"),
  "img/mlp/down": (f"{_MLP}/Dense_1/kernel", None, "F", "D", "F D"),
  "img/head": ("img/head/kernel", None, "D", "E", "D E"),
}
_ATTN = f"{_LLM}/attn"
PLAIN_QKV = {
  "grouped": {
    "llm/attn/q": (f"{_ATTN}/q_einsum/w", None, "D", "N H", "N D H"),
    "llm/attn/k": (f"{_ATTN}/kv_einsum/w", 0, "D", "N H", "N D H"),
    "llm/attn/v": (f"{_ATTN}/kv_einsum/w", 1, "D", "N H", "N D H"),
  },
  "fused": {
    "llm/attn/q": (f"{_ATTN}/qkv_einsum/w", 0, "D", "N H", "N D H"),
    "llm/attn/k": (f"{_ATTN}/qkv_einsum/w", 1, "D", "N H", "N D H"),
    "llm/attn/v": (f"{_ATTN}/qkv_einsum/w", 2, "D", "N H", "N D H"),
  },
}


def plainly_merged(weights, adapted, scale):
  """Every matrix plus the product of its adapter."""
  weights = dict(weights)
  style = "fused" if f"{_ATTN}/qkv_einsum/w" in weights else "grouped"
  for target, path in TARGETS.items():
    matrix, part, rows, columns, axes = (PLAIN | PLAIN_QKV[style])[target]
    size = LLM["head_dim"] if target.startswith("llm") else 4

    def split(array, before, after, size=size):
      sizes = {"H": size} if "H" in after else {}
      return einops.rearrange(array, f"{before} -> {after}", **sizes)

    a = split(adapted[f"{path}/a"], f"... ({rows}) R", f"... {rows} R")
    b = split(adapted[f"{path}/b"], f"... R ({columns})", f"... R {columns}")
    delta = scale * einops.einsum(
      a, b, f"... {rows} R, ... R {columns} -> ... {axes}"
    )
    place = ... if part is None else (slice(None), part)
    weights[matrix] = jnp.asarray(weights[matrix]).at[place].add(delta)
  return tree.unflatten(weights)


def test_unmerged_is_merged_is_the_formula(base, adapted):
  model, params = adapted
  flat = tree.flatten(params)
  new, weights = tree.partition(flat, lora.is_adapter(flat))
  unmerged = logits(model, params)
  assert np.abs(unmerged - logits(*base)).max() > 0.1
  plain, merged = paligemma.merge_lora(model, params)
  assert plain == base[0]
  assert_close(logits(plain, merged), unmerged, 1e-5)
  expected = tree.flatten(plainly_merged(weights, new, scale=3 / 5))
  merged = tree.flatten(merged)
  assert merged.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_allclose(merged[name], array, atol=1e-6, err_msg=name)


def test_gradients_are_those_of_the_formula(grouped):
  model, params = enable(*grouped)
  flat = tree.flatten(params)
  new, weights = tree.partition(flat, lora.is_adapter(flat))

  def unmerged(new):
    return model, tree.unflatten({**weights, **new})

  def formula(new):
    return grouped[0], plainly_merged(weights, new, scale=3 / 5)

  def loss(of, new):
    return jnp.sum(jnp.sin(logits(*of(new))))

  found, expected = (
    jax.jit(jax.grad(functools.partial(loss, of)))(new)
    for of in (unmerged, formula)
  )
  for name, gradient in expected.items():
    assert_close(found[name], gradient, 1e-4)


def unstack(model, params):
  flat = layouts.unstack(tree.flatten(params), lambda x, i: x[i])
  model = model.clone(
    img=model.img.clone(scan=False), llm=model.llm.clone(scan=False)
  )
  return model, tree.unflatten(flat)


def test_scanned_is_looped(grouped):
  scanned = enable(*grouped)
  looped = unstack(*scanned)
  assert_close(logits(*looped), logits(*scanned), 1e-5)
  model, expected = unstack(*paligemma.merge_lora(*scanned))
  found_model, found = paligemma.merge_lora(*looped)
  assert found_model == model
  jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), found, expected)


@pytest.mark.parametrize(
  ("targets", "remat_policy"),
  [
    (["llm/attn/v"], "block_inputs"),
    (["img/mlp/up"], "block_inputs"),
    (["llm/mlp/down", "img/head"], "none"),
  ],
)
def test_dropout_of_adapters(grouped, targets, remat_policy):
  model = build(remat_policy=remat_policy)
  model, params = enable(model, grouped[1], targets=targets, dropout=0.5)
  zeros = np.zeros_like(TEXT)

  @jax.jit
  def train(seed):
    rngs = {"dropout": jax.random.key(seed)}
    variables = {"params": params}
    return model.apply(variables, IMAGE, TEXT, zeros, True, rngs=rngs)[0]

  # Without rngs, that is without dropout.
  expected = logits(model, params)
  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 1e-3
  assert np.abs(train(0) - expected).max() > 1e-3


def test_merged_keeps_its_dtype(grouped):
  model, params = grouped
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  before = tree.flatten(params)
  _, merged = paligemma.merge_lora(
    *enable(model, params, targets=["llm/mlp/.*"])
  )
  for name, array in tree.flatten(merged).items():
    assert array.dtype == jnp.bfloat16, name
    changed = re.fullmatch("llm/layers/mlp/.*", name) is not None
    assert np.any(array != before[name]) == changed, name


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_adapters_of_a_quantized_model(grouped, kind):
  model, params = grouped
  table, *others = matrices = [
    "llm/embedder/input_embedding",
    "llm/layers/attn/kv_einsum/w",
    "llm/layers/mlp/linear",
    "img/head/kernel",
  ]
  few = tree.flatten(params)
  few |= {n: quantization.quantize(n, few[n], kind) for n in matrices}
  full = {n: quantization.dequantize(few[n], jnp.float32) for n in matrices}
  full = few | full
  few = enable(model, tree.unflatten(few))
  full = enable(model, tree.unflatten(full))
  assert_close(logits(*few), logits(*full), 1e-5)
  _, merged = paligemma.merge_lora(*few)
  _, expected = paligemma.merge_lora(*full)
  expected = tree.flatten(expected)
  for name, array in tree.flatten(merged).items():
    if name in expected:
      np.testing.assert_allclose(array, expected[name], atol=1e-6)
  # What had an adapter is full again, the rest as it was.
  kept = {n.rpartition("/")[0] for n in tree.flatten(merged)}
  assert table in kept
  assert not kept & set(others)


def test_spread_over_devices(grouped, tmp_path):
  model, params = grouped
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  flat = tree.flatten(params)

  def place(array):  # the last axis, where it can be split
    axes = [None] * array.ndim
    axes[-1] = "data" if array.shape[-1] % 2 == 0 else None
    return jax.NamedSharding(mesh, jax.P(*axes))

  places = {name: place(array) for name, array in flat.items()}
  assert not places["llm/layers/mlp/linear"].is_fully_replicated
  spread = tree.unflatten(jax.device_put(flat, places))
  model, spread = paligemma.enable_lora(model, spread, targets=["llm/.*"])

  def assert_everywhere(params):
    new = [x for n, x in tree.flatten(params).items() if is_adapter(n)]
    assert new
    assert all(x.sharding.is_fully_replicated for x in new)
    assert {x.sharding.mesh for x in new} == {mesh}

  assert_everywhere(spread)
  _, merged = paligemma.merge_lora(model, spread)
  for name, array in tree.flatten(merged).items():
    np.testing.assert_allclose(array, flat[name], atol=1e-6)
    assert array.sharding.is_equivalent_to(places[name], array.ndim), name
  paligemma.save_adapter(tmp_path / "a.safetensors", model, spread)
  _, back = paligemma.load_adapter(tmp_path / "a.safetensors", model, spread)
  assert_everywhere(back)
  assert_same(back, spread)


NAMES = {"paligemma": "adapter.safetensors", "peft": "adapter"}


@pytest.fixture(params=NAMES.values())
def saved(request, grouped, tmp_path):
  path = tmp_path / request.param
  paligemma.save_adapter(path, *enable(*grouped, dropout=0.25))
  return path


def test_saved_and_loaded_is_itself(saved, grouped):
  model, params = paligemma.load_adapter(saved, *grouped)
  targets = [".*"] if saved.suffix else TARGETS.keys()
  expected = lora_config.Lora(5, 3.0, dropout=0.25, targets=list(targets))
  assert model.llm.lora == model.img.lora == expected
  assert_same(params, enable(*grouped)[1])
  assert saved.is_dir() == (not saved.suffix)


def test_layers_stacked_or_apart(saved, grouped, tmp_path):
  model, params = paligemma.load_adapter(saved, *unstack(*grouped))
  assert_same(params, unstack(*enable(*grouped))[1])
  again = tmp_path / "again" / saved.name
  paligemma.save_adapter(again, model, params)
  files = [""] if saved.is_file() else [x.name for x in saved.iterdir()]
  assert len(files) == (1 if saved.suffix else 2)
  for name in files:
    assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_one_tower_stacked_the_other_apart(saved, grouped):
  model, params = grouped
  looped, apart = unstack(model, params)
  model = model.clone(img=looped.img)
  _, params = paligemma.load_adapter(
    saved, model, params | {"img": apart["img"]}
  )
  expected = enable(*grouped)
  assert_same(params["llm"], expected[1]["llm"])
  assert_same(params["img"], unstack(*expected)[1]["img"])


def test_adapters_are_exchanged(saved, grouped):
  others = enable(*grouped, rank=2, targets=["llm/mlp/down"])
  model, params = paligemma.load_adapter(saved, *others)
  assert model.llm.lora.rank == 5
  assert_same(params, enable(*grouped)[1])


def test_a_decoder_alone(grouped, tmp_path):
  model, params = grouped
  model, params = model.clone(img=None), {"llm": params["llm"]}
  adapted = enable(model, params, targets=["llm/mlp/.*"])
  for name in NAMES.values():
    paligemma.save_adapter(tmp_path / name, *adapted)
    _, back = paligemma.load_adapter(tmp_path / name, model, params)
    assert_same(back, adapted[1])


def refused(match):
  return pytest.raises(ValueError, match=match)


def test_enabled_twice(grouped):
  with refused("^the model has adapters already; merge_lora"):
    paligemma.enable_lora(*enable(*grouped))


def test_without_adapters(grouped, tmp_path):
  with refused("^the model has no adapters to merge$"):
    paligemma.merge_lora(*grouped)
  with refused(r"a\.safetensors: the model has no adapters to save; palig"):
    paligemma.save_adapter(tmp_path / "a.safetensors", *grouped)


def test_bad_fields(grouped):
  with refused("^LoRA rank is 0, expected"):
    paligemma.enable_lora(*grouped, rank=0)
  with refused('^LoRA target "llm/q" matches none of'):
    paligemma.enable_lora(*grouped, targets=["llm/q"])
  with refused(r"^LoRA targets are 'llm/\.\*', expected a list"):
    paligemma.enable_lora(*grouped, targets="llm/.*")


def test_targets_that_the_model_lacks(grouped):
  model, params = grouped
  with refused(r'^LoRA target "img/head": the model has no such tower, exp'):
    paligemma.enable_lora(
      model.clone(img=None), params, targets=["llm/.*", "img/head"]
    )


def test_format_that_the_name_does_not_tell(grouped, tmp_path):
  adapted = enable(*grouped, targets=["img/head"])
  with refused(r"a\.npz: cannot tell the format .*of: paligemma, peft, a "):
    paligemma.save_adapter(tmp_path / "a.npz", *adapted)
  with refused('^unknown format of adapters "pefd".*Did you mean "peft"'):
    paligemma.save_adapter(tmp_path / "a", *adapted, format="pefd")
  paligemma.save_adapter(tmp_path / "a.peft", *adapted, format="peft")
  _, back = paligemma.load_adapter(tmp_path / "a.peft", *grouped)
  assert_same(back, adapted[1])


def test_adapters_of_another_model(saved, grouped):
  model, params = grouped
  other = model.clone(
    img=model.img.clone(num_classes=16), llm=model.llm.clone(width=16)
  )
  match = (
    r"decoder is \(depth 3, .*, width 14\), .* given is \(depth 3, .* width 16"
    if saved.suffix
    else r"8 arrays differ: img/head/lora_head/b: found shape \(5, 14\), "
  )
  with refused(rf"{saved.name}: adapters of another model.*{match}"):
    paligemma.load_adapter(saved, other, params)


def test_fewer_layers(saved, grouped):
  model, params = grouped
  other = model.clone(llm=model.llm.clone(depth=5))
  match = (
    r"adapters of another model.*depth 3.*depth 5"
    if saved.suffix
    else r"layers\.3\.\S+ has no adapter, .* missing, or it is of another model"
  )
  with refused(match):
    paligemma.load_adapter(saved, other, params)


def test_the_image_tower_is_missing(saved, grouped):
  model, params = grouped
  match = (
    r"another model: its image tower is \(depth 2, .*, that of the model "
    "given is missing$"
    if saved.suffix
    else "lora_A.weight: the model has no image tower$"
  )
  with refused(f"{saved.name}.*{match}"):
    paligemma.load_adapter(saved, model.clone(img=None), params)


def test_no_file(grouped, tmp_path):
  with refused(r"nothing\.safetensors: No such file"):
    paligemma.load_adapter(tmp_path / "nothing.safetensors", *grouped)


WHOLE_TENSORS = {
  # Key in the file -> name here, place in it, axes there and here.
  "vision_tower.encoder.layers.1.self_attn.q_proj.base_layer.bias": (
    f"{MHA}/query/bias",
    (1,),
    "(N H) -> N H",
  ),
  "vision_tower.encoder.layers.0.layer_norm1.bias": (
    f"{BLOCK}/LayerNorm_0/bias",
    (0,),
    "D -> D",
  ),
  "multi_modal_projector.linear.weight": (
    "img/head/kernel",
    (),
    "E D -> D E",
  ),
  "multi_modal_projector.linear.bias": ("img/head/bias", (), "D -> D"),
  "language_model.layers.2.mlp.up_proj.weight": (
    "llm/layers/mlp/gating_einsum",
    (2, 1),
    "F D -> D F",
  ),
  "language_model.embed_tokens.weight": (
    "llm/embedder/input_embedding",
    (),
    "V D -> V D",
  ),
}


@pytest.fixture(scope="module")
def folder(grouped, tmp_path_factory):
  """A folder of peft, and its tensors of the model."""
  folder = tmp_path_factory.mktemp("peft") / "a"
  model, params = enable(*grouped, targets=["llm/attn/q"])
  paligemma.save_adapter(folder, model, params)
  rng = np.random.default_rng(5)
  shapes = [(12,), (12,), (14, 12), (14,), (19, 14), (VOCABULARY + 3, 14)]
  whole = {
    key: rng.normal(size=shape).astype(np.float32)
    for key, shape in zip(WHOLE_TENSORS, shapes, strict=True)
  }
  file = folder / peft.FILE
  tensors = {k: np.array(x[...]) for k, x in safetensors.open(file).items()}
  tensors |= {f"base_model.model.model.{k}": x for k, x in whole.items()}
  safetensors.save(file, tensors, {"format": "pt"})
  return folder, whole


class TestWholeTensorsOfPeft:
  """Biases and modules that peft trained beside the adapters."""

  def expected(self, params, whole):
    flat = {n: np.array(x) for n, x in tree.flatten(params).items()}
    for key, (name, at, axes) in WHOLE_TENSORS.items():
      array = whole[key][:VOCABULARY] if "embed" in key else whole[key]
      flat[name][at] = einops.rearrange(
        array, axes, **({"N": 3} if "N" in axes else {})
      )
    return flat

  def test_take_the_place_of_the_model_s(self, grouped, folder, caplog):
    path, whole = folder
    with caplog.at_level("WARNING"):
      _, found = paligemma.load_adapter(path, *grouped)
    assert "replaces 6 tensors of the model itself" in caplog.text
    found = tree.flatten(found)
    for name, array in self.expected(grouped[1], whole).items():
      np.testing.assert_array_equal(found[name], array, err_msg=name)

  def test_layers_apart(self, grouped, folder):
    path, whole = folder
    flat = layouts.unstack(tree.flatten(grouped[1]), lambda x, i: x[i])
    _, found = paligemma.load_adapter(
      path, build(scan=False), tree.unflatten(flat)
    )
    found = tree.flatten(found)
    expected = self.expected(grouped[1], whole)
    for name, x in layouts.unstack(expected, lambda x, i: x[i]).items():
      np.testing.assert_array_equal(found[name], x, err_msg=name)

  def test_beside_quantized_matrices(self, grouped, folder):
    path, whole = folder
    flat = tree.flatten(grouped[1])
    rounded = {}
    for name, x in flat.items():
      if quantization.summed_axes(name):
        both = quantization.quantize(name, x, "int8")
        rounded |= {f"{name}/{part}": y for part, y in both.items()}
      else:
        rounded[name] = x
    _, found = paligemma.load_adapter(path, grouped[0], tree.unflatten(rounded))
    found = tree.flatten(found)
    head = einops.rearrange(
      whole["multi_modal_projector.linear.weight"], "E D -> D E"
    )
    np.testing.assert_array_equal(found["img/head/kernel"], head)
    gating = "llm/layers/mlp/gating_einsum"
    np.testing.assert_array_equal(
      found[gating][2, 1],
      whole["language_model.layers.2.mlp.up_proj.weight"].T,
    )
    old = {part: rounded[f"{gating}/{part}"] for part in ("int8", "scale")}
    np.testing.assert_array_equal(
      found[gating][:2], quantization.dequantize(old, np.float32)[:2]
    )

  def test_of_another_model(self, grouped, folder, tmp_path):
    path, _ = folder
    shutil.copytree(path, tmp_path / "a")
    file = tmp_path / "a" / peft.FILE
    tensors = {k: np.array(x[...]) for k, x in safetensors.open(file).items()}
    key = "base_model.model.model.multi_modal_projector.linear.bias"
    tensors[key] = np.zeros(13, np.float32)
    safetensors.save(file, tensors, {"format": "pt"})
    message = r"a: projector\.linear\.bias: \[13\], expected \[14\]$"
    with pytest.raises(ValueError, match=message):
      paligemma.load_adapter(tmp_path / "a", *grouped)


def test_the_base_is_said_if_it_is_another(grouped, tmp_path, caplog):
  model, params = enable(*grouped, targets=["llm/attn/q"])
  file = tmp_path / "a.safetensors"
  adapters.write(
    file,
    model,
    {n: x for n, x in tree.flatten(params).items() if is_adapter(n)},
    base="int4",
  )
  with caplog.at_level("WARNING"):
    paligemma.load_adapter(file, *grouped)
  message = "trained beside matrices in int4 and is used beside full precision"
  assert message in caplog.text
  caplog.clear()
  paligemma.save_adapter(file, model, params)
  with caplog.at_level("WARNING"):
    paligemma.load_adapter(file, *grouped)
  assert not caplog.text


def warned(path, base, caplog):
  """Whether loading adapters over a base says that it is another."""
  caplog.clear()
  with caplog.at_level("WARNING"):
    paligemma.load_adapter(path, *base)
  lines = [x.getMessage() for x in caplog.records]
  assert len(lines) <= 1
  for line in lines:
    assert line.startswith(f"{path}: was trained beside another base, ")
    assert "\n" not in line
  return bool(lines)


def changed(params, name, factor):
  flat = tree.flatten(params)
  return tree.unflatten(flat | {name: np.asarray(flat[name]) * factor})


def test_another_base_of_the_same_sizes_is_said(grouped, tmp_path, caplog):
  model, params = grouped
  path = tmp_path / "a.safetensors"
  paligemma.save_adapter(path, *enable(*grouped))
  other = model, random(init.shapes(model, RES), seed=2)
  assert warned(path, other, caplog)
  assert not warned(path, grouped, caplog)
  # One kind of matrix, a little further trained.
  for name in ("llm/layers/attn/q_einsum/w", "img/head/bias"):
    assert warned(path, (model, changed(params, name, 1 + 1e-4)), caplog)
  # What is written over it tells the base that it was loaded on.
  paligemma.save_adapter(path, *paligemma.load_adapter(path, *other))
  assert warned(path, grouped, caplog)
  assert not warned(path, other, caplog)


def test_the_same_base_in_another_form_is_the_same(grouped, tmp_path, caplog):
  model, params = grouped
  path = tmp_path / "a.safetensors"
  paligemma.save_adapter(path, *enable(*grouped))
  looped = layouts.unstack(tree.flatten(params), lambda x, i: x[i])
  halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  rows = np.ones((7, LLM["width"]), np.float32)
  table = np.concatenate([params["llm"]["embedder"]["input_embedding"], rows])
  longer = tree.flatten(params) | {"llm/embedder/input_embedding": table}
  forms = {
    "loop": (build(scan=False), tree.unflatten(looped)),
    "bfloat16": (build(dtype="bfloat16"), halves),
    "more rows": (
      model.clone(llm=model.llm.clone(vocab_size=len(table))),
      tree.unflatten(longer),
    ),
  }
  for name, base in forms.items():
    assert not warned(path, base, caplog), name
  model = build("fused")
  base = model, random(init.shapes(model, RES))
  paligemma.save_adapter(path, *enable(*base))
  for format in ("npz", "huggingface"):
    file = tmp_path / f"base.{format}"
    paligemma.save(file, *base, format=format)
    assert not warned(path, paligemma.load(file), caplog), format


@pytest.mark.parametrize("kind", quantization.KINDS)
def test_another_base_in_few_bits_is_said(grouped, tmp_path, caplog, kind):
  model, params = grouped

  def rounded(params):
    flat = tree.flatten(params)
    names = ["llm/layers/mlp/linear", "llm/layers/attn/kv_einsum/w"]
    flat |= {n: quantization.quantize(n, flat[n], kind) for n in names}
    return model, tree.unflatten(flat)

  base, path = rounded(params), tmp_path / "a.safetensors"
  paligemma.save_adapter(path, *paligemma.enable_lora(*base))
  assert not warned(path, base, caplog)
  other = changed(params, "llm/layers/mlp/linear", 1.1)
  assert warned(path, rounded(other), caplog)


def test_peft_names_no_base_and_loads_without_a_word(grouped, tmp_path, caplog):
  paligemma.save_adapter(tmp_path / "a", *enable(*grouped))
  other = grouped[0], random(init.shapes(grouped[0], RES), seed=2)
  assert not warned(tmp_path / "a", other, caplog)


@pytest.mark.parametrize(
  "damage",
  [
    "",
    "[]",
    '{"a": 1}',
    '{"a": ["int8", 1.0]}',
    '{"a": ["float32"]}',
    '{"a": ["float32", NaN]}',
  ],
)
def test_a_damaged_name_of_the_base(grouped, tmp_path, damage):
  path = tmp_path / "a.safetensors"
  paligemma.save_adapter(path, *enable(*grouped))
  metadata = safetensors.read_metadata(path) | {"weights": damage}
  arrays = {n: np.array(x[:]) for n, x in safetensors.open(path).items()}
  safetensors.save(path, arrays, metadata)
  with pytest.raises(ValueError, match=r"a\.safetensors: weights in the meta"):
    paligemma.load_adapter(path, *grouped)
