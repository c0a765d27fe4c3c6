"""Every tree in which Gemma was released gives the same leaves."""

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from paligemma import init, tree, variants
from paligemma.checkpoints.orbax import gemma as gemma_orbax
from paligemma.models import gemma, paligemma

RNG = np.random.default_rng(0)
V, D, F, N, K, H, L = 13, 5, 11, 4, 2, 3, 7


def draw(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def layer(*, heads=K, post_norms=False, transposed=False):
  """Names and arrays of a layer as google-deepmind/gemma has them."""
  found = {
    "attn/attn_vec_einsum/w": draw(N, H, D),
    "mlp/gating_einsum/w": draw(2, F, D) if transposed else draw(2, D, F),
    "mlp/linear/w": draw(F, D),
    "pre_attention_norm/scale": draw(D),
    "pre_ffw_norm/scale": draw(D),
  }
  if heads == N:
    found["attn/qkv_einsum/w"] = draw(3, N, D, H)
  else:
    found["attn/q_einsum/w"] = draw(N, D, H)
    found["attn/kv_einsum/w"] = draw(2, heads, D, H)
  if post_norms:
    found["post_attention_norm/scale"] = draw(D)
    found["post_ffw_norm/scale"] = draw(D)
  return found


def released(rows=V, depth=L, **kwargs):
  """The flat tree: name -> array."""
  found = {
    "transformer/embedder/input_embedding": draw(rows, D),
    "transformer/final_norm/scale": draw(D),
  }
  for i in range(depth):
    for rest, array in layer(**kwargs).items():
      found[f"transformer/layer_{i}/{rest}"] = array
  return found


def expected(flat):
  """big_vision's names, put together by hand."""
  flat = {n.removeprefix("transformer/"): x for n, x in flat.items()}
  found = {
    "llm/embedder/input_embedding": flat["embedder/input_embedding"],
    "llm/final_norm/scale": flat["final_norm/scale"],
  }
  rests = [n.removeprefix("layer_0/") for n in flat if n.startswith("layer_0/")]
  for rest in rests:
    name = rest.removesuffix("/w") if rest.startswith("mlp/") else rest
    found[f"llm/layers/{name}"] = np.stack(
      [flat[f"layer_{i}/{rest}"] for i in range(L)]
    )
  return found


def semi_flat(flat):
  """{"transformer/layer_0/attn/q_einsum": {"w": ...}}, as released."""
  found = {}
  for name, array in flat.items():
    key, _, last = name.rpartition("/")
    found.setdefault(key, {})[last] = array
  return found


def nested(flat):
  """As gm.ckpts.load_params returns it: no "transformer", no "w" in the mlp."""
  return tree.unflatten(
    {
      name.removeprefix("transformer/")
      .replace("gating_einsum/w", "gating_einsum")
      .replace("linear/w", "linear"): array
      for name, array in flat.items()
    }
  )


def stacked(flat, types):
  """stacked_layers/attention_type_1 holds layers 1, 1 + types, ..."""
  found, parts = {}, {}
  for name, array in flat.items():
    top, _, rest = name.removeprefix("transformer/").partition("/")
    if top.startswith("layer_"):
      i = int(top.removeprefix("layer_"))
      parts.setdefault((i % types, rest), []).append(array)
    else:
      found[name] = array
  for (i, rest), arrays in parts.items():
    name = f"transformer/stacked_layers/attention_type_{i}/{rest}"
    found[name] = np.stack(arrays)
  return found


TREES = {
  "flat": dict,
  "semi-flat": semi_flat,
  "nested": nested,
  "nested under transformer": lambda x: {"transformer": nested(x)},
  "under params": lambda x: {"params": nested(x), "step": 3, "opt_state": {}},
  "under params and transformer": lambda x: {
    "params": {"transformer": nested(x)}
  },
  "stacked by 2": lambda x: semi_flat(stacked(x, 2)),
  "stacked by 3, nested": lambda x: nested(stacked(x, 3)),
}


def write(path, params):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path, params)
  return path


def assert_same(checkpoint, flat):
  assert checkpoint.leaves.keys() == flat.keys()
  for name, leaf in checkpoint.leaves.items():
    found = leaf.read()
    assert found.dtype == leaf.dtype == flat[name].dtype, name
    np.testing.assert_array_equal(found, flat[name], err_msg=name)
    part = tuple(slice(n // 3, n // 3 + 2) for n in leaf.shape)
    np.testing.assert_array_equal(leaf.read(index=part), flat[name][part])


@pytest.mark.parametrize("kind", TREES)
def test_every_tree_is_read(tmp_path, kind):
  flat = released()
  path = write(tmp_path / "a", TREES[kind](flat))
  found = gemma_orbax.open(path)
  assert (found.path, found.format) == (str(path), "Gemma Orbax")
  assert found.ignored == (("step",) if kind == "under params" else ())
  assert_same(found, expected(flat))
  assert gemma_orbax.holds(path)


def test_post_norms(tmp_path):
  flat = released(post_norms=True)
  found = gemma_orbax.open(write(tmp_path / "a", semi_flat(flat)))
  assert_same(found, expected(flat))
  assert "llm/layers/post_ffw_norm/scale" in found.leaves


@pytest.mark.parametrize("kind", ["semi-flat", "stacked by 2"])
def test_transposed_gating(tmp_path, kind):
  flat = released(transposed=True)
  found = gemma_orbax.open(write(tmp_path / "a", TREES[kind](flat)))
  wanted = expected(flat)
  name = "llm/layers/mlp/gating_einsum"
  wanted[name] = wanted[name].transpose(0, 1, 3, 2)
  assert wanted[name].shape == (L, 2, D, F)
  assert_same(found, wanted)


def test_as_many_key_heads_as_query_heads(tmp_path):
  flat = released(heads=N)
  found = gemma_orbax.open(write(tmp_path / "a", semi_flat(flat)))
  wanted = expected(flat)
  assert_same(found, wanted)

  apart = {n: x for n, x in flat.items() if "qkv" not in n}
  for i in range(L):
    qkv = flat[f"transformer/layer_{i}/attn/qkv_einsum/w"]
    apart[f"transformer/layer_{i}/attn/q_einsum/w"] = qkv[0]
    apart[f"transformer/layer_{i}/attn/kv_einsum/w"] = qkv[1:]
  found = gemma_orbax.open(write(tmp_path / "b", TREES["stacked by 2"](apart)))
  assert_same(found, wanted)


@pytest.mark.parametrize(
  ("rows", "kept"), [(256_128, 256_000), (256_000, 256_000)]
)
def test_rows_that_only_pad_are_dropped(tmp_path, rows, kept):
  flat = released(rows=rows)
  name = "transformer/embedder/input_embedding"
  flat[name] = np.broadcast_to(
    np.arange(rows, dtype=np.float32)[:, None], (rows, D)
  ).astype(ml_dtypes.bfloat16)
  found = gemma_orbax.open(write(tmp_path / "a", semi_flat(flat)))
  table = found.leaves["llm/embedder/input_embedding"]
  assert table.shape == (kept, D)
  np.testing.assert_array_equal(table.read(), flat[name][:kept])
  part = table.read(index=(slice(255_990, 255_999), slice(1, 3)))
  np.testing.assert_array_equal(part, flat[name][255_990:255_999, 1:3])


def decoder_shapes(variant):
  model = paligemma.Model(img=None, llm=gemma.make(variant))
  return {name: x.shape for name, x in init.shapes(model).items()}


@pytest.mark.parametrize("variant", ["gemma_nano", "gemma2_nano"])
def test_our_decoder_takes_it(tmp_path, variant):
  shapes = decoder_shapes(variant)
  flat = {}
  for name, shape in shapes.items():
    name = name.removeprefix("llm/")
    if name.startswith("layers/"):
      for i in range(shape[0]):
        rest = name.removeprefix("layers/")
        flat[f"layer_{i}/{rest}"] = np.zeros(shape[1:], np.float32)
    else:
      flat[name] = np.zeros(shape, np.float32)
  found = gemma_orbax.open(write(tmp_path / "a", tree.unflatten(flat)))
  assert {n: x.shape for n, x in found.leaves.items()} == shapes


@pytest.mark.parametrize("variant", variants.GEMMA)
def test_settings_are_those_of_the_size(variant):
  settings = gemma_orbax._settings(decoder_shapes(variant))
  made = gemma.make(variant)
  assert settings == {field: getattr(made, field) for field in settings}
  assert len(settings) == 6


def test_settings_of_an_unknown_size(tmp_path):
  found = gemma_orbax.open(write(tmp_path / "a", nested(released())))
  assert found.llm["attn_logits_softcap"] is None
  assert found.llm["post_norms"] is False
  flat = released(post_norms=True)
  found = gemma_orbax.open(write(tmp_path / "b", nested(flat)))
  assert found.llm["attn_logits_softcap"] == 50.0
  assert found.llm["final_logits_softcap"] == 30.0
  assert found.llm["sliding_window"] == 4096
  assert found.llm["post_norms"] is True


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"transformer/layer_2/attn/_key_norm/scale": draw(H)},
      "no parameters of Gemma 1 or 2: layer_2/attn/_key_norm/scale",
    ),
    ({"vit/w": draw(3)}, "no parameters of Gemma 1 or 2: vit/w$"),
    ({"final_norm/scale": draw(D)}, "no parameters .*transformer/final_norm"),
    (
      {"transformer/embedder/input_embedding": None},
      "transformer/embedder/input_embedding: missing",
    ),
    ({"transformer/final_norm/scale": None}, "final_norm/scale: missing"),
    ({"transformer/layer_3/mlp/linear/w": None}, "layer 3 lacks mlp/linear"),
    (
      {"transformer/layer_3/attn/kv_einsum/w": None},
      "layer 3 lacks attn/kv_einsum/w",
    ),
    (
      {"transformer/layer_9/pre_ffw_norm/scale": draw(D)},
      "layer 9 lacks attn/attn_vec_einsum/w, attn/kv_einsum/w, attn/q_einsum/w",
    ),
    (
      {"transformer/layer_3/mlp/gating_einsum/w": draw(2, F, F)},
      r"layer 3: mlp/gating_einsum: shape \(2, 11, 11\), expected \(2, D, F\)",
    ),
    (
      {"transformer/layer_3/pre_ffw_norm/scale": draw(D + 1)},
      r"llm/layers/pre_ffw_norm/scale: layers differ in shape",
    ),
    (
      {
        "transformer/stacked_layers/attention_type_0/mlp/linear/w": draw(
          1, F, D
        )
      },
      "attention_type_0/mlp/linear/w: layer 0 stands there twice",
    ),
    (
      {"transformer/layer_3/mlp/linear": draw(F, D)},
      "layer_3/mlp/linear.*: layer 3 stands there twice",
    ),
    (
      {"transformer/embedder/input_embedding": draw(V)},
      r"embedder/input_embedding: shape \(13,\), expected \(V, D\)",
    ),
    (
      {"transformer/final_norm/scale": np.ones(D, np.int8)},
      "llm/final_norm/scale: dtype int8",
    ),
  ],
)
def test_gaps_and_leftovers(tmp_path, change, message):
  flat = {n: x for n, x in (released() | change).items() if x is not None}
  write(tmp_path / "a", flat)
  with pytest.raises(ValueError, match=rf"/a: .*{message}") as e:
    gemma_orbax.open(tmp_path / "a")
  assert "\n" not in str(e.value)


def test_a_gap_between_layers(tmp_path):
  flat = {n: x for n, x in released().items() if "layer_3/" not in n}
  with pytest.raises(ValueError, match=r"layers/3/.*: missing, there are 7"):
    gemma_orbax.open(write(tmp_path / "a", flat))
  flat = {n: x for n, x in flat.items() if "layer_" not in n}
  with pytest.raises(ValueError, match="layer_0: missing"):
    gemma_orbax.open(write(tmp_path / "b", flat))


def test_what_is_no_gemma(tmp_path):
  path = write(
    tmp_path / "a", {"llm": {"embedder": {"input_embedding": draw(3)}}}
  )
  assert not gemma_orbax.holds(path)
  assert not gemma_orbax.holds(tmp_path)
  with pytest.raises(ValueError, match="holds no Orbax checkpoint"):
    gemma_orbax.open(tmp_path)
