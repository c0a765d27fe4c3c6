"""Folders of peft: every tensor once, nothing dropped, other spellings."""

import json

import numpy as np
import pytest

from paligemma.checkpoints import safetensors
from paligemma.checkpoints.lora import peft
from paligemma.lora import config as lora_lib
from paligemma.lora.config import Lora

RANK, DEPTH, WIDTH = 2, 3, 7
TOWERS = ("img", "llm")
DEPTHS = {"img": DEPTH, "llm": DEPTH}
FIELDS = dict(rank=RANK, alpha=0.5, rslora=True, dropout=0.25)


# Of a PaliGemma.
TARGETS = [x for x in lora_lib.TARGETS if not x.startswith("txt/")]


def make_arrays(targets):
  """Numbers that are all different; outputs are as many as come next."""
  rng = np.random.default_rng(0)
  arrays = {}
  for i, target in enumerate(targets):
    layers = () if target == "img/head" else (DEPTH,)
    path = lora_lib.TARGETS[target]
    shapes = {"a": (*layers, WIDTH, RANK), "b": (*layers, RANK, WIDTH + i)}
    for name, shape in shapes.items():
      arrays[f"{path}/{name}"] = rng.standard_normal(shape).astype(np.float32)
  return arrays


ALL = make_arrays(TARGETS)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "new" / "adapter"
  peft.save(path, ALL, Lora(**FIELDS, targets=[".*"]), towers=TOWERS)
  return path


def read(path, **depths):
  lora, leaves, _ = peft.open(path, depths=depths or DEPTHS)
  return lora, {name: leaf.read() for name, leaf in leaves.items()}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def tensors_of(path):
  found = safetensors.open(path / peft.FILE)
  return {key: np.array(tensor[...]) for key, tensor in found.items()}


def rewrite(path, tensors):
  safetensors.save(path / peft.FILE, tensors, {"format": "pt"})


def rename(path, *spellings):
  def renamed(key):
    for one, other in spellings:
      key = key.replace(one, other)
    return key

  rewrite(path, {renamed(key): x for key, x in tensors_of(path).items()})


def configure(path, **fields):
  file = path / peft.CONFIG
  config = json.loads(file.read_text()) | fields
  config = {k: v for k, v in config.items() if v != "absent"}
  file.write_text(json.dumps(config))


def test_itself_again(path):
  lora, found = read(path)
  assert lora == Lora(**FIELDS, targets=TARGETS)
  assert_same(found, ALL)
  assert [x.name for x in path.parent.iterdir()] == [path.name]


def test_names_and_shapes(path):
  # As peft 0.21 writes them, see tests/parity/test_peft.py.
  shapes = {key: x.shape for key, x in tensors_of(path).items()}
  stem = "base_model.model.model"
  attention = ("q_proj", "k_proj", "v_proj")
  decoder = [f"self_attn.{x}" for x in (*attention, "o_proj")]
  decoder += [f"mlp.{x}" for x in ("gate_proj", "up_proj", "down_proj")]
  tower = [f"self_attn.{x}" for x in (*attention, "out_proj")]
  tower += [f"mlp.{x}" for x in ("fc1", "fc2")]
  modules = [
    *(f"language_model.layers.{i}.{x}" for i in range(DEPTH) for x in decoder),
    *(
      f"vision_tower.encoder.layers.{i}.{x}"
      for i in range(DEPTH)
      for x in tower
    ),
    "multi_modal_projector.linear",
  ]
  matrices = ("lora_A.weight", "lora_B.weight")
  assert shapes.keys() == {f"{stem}.{x}.{y}" for x in modules for y in matrices}
  up = f"{stem}.language_model.layers.2.mlp.up_proj"
  assert shapes[f"{up}.lora_A.weight"] == (RANK, WIDTH)
  assert shapes[f"{up}.lora_B.weight"] == (WIDTH + 5, RANK)
  out = f"{stem}.vision_tower.encoder.layers.0.self_attn.out_proj"
  assert shapes[f"{out}.lora_B.weight"] == (WIDTH + 10, RANK)
  head = f"{stem}.multi_modal_projector.linear"
  assert shapes[f"{head}.lora_B.weight"] == (WIDTH + 13, RANK)


def test_config(path):
  config = json.loads((path / peft.CONFIG).read_text())
  modules = config.pop("target_modules").split("|.")
  assert [x.split("_")[0] for x in modules] == [
    ".*language",
    "*vision",
    "*multi",
  ]
  assert config == {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": None,
    "inference_mode": True,
    "r": RANK,
    "lora_alpha": 0.5,
    "lora_dropout": 0.25,
    "use_rslora": True,
    "use_dora": False,
    "modules_to_save": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
  }


@pytest.mark.parametrize(
  "spellings",
  [
    # Hub's names, and those of transformers before 5.
    (
      ("model.model.language_model.", "model.language_model.model."),
      ("model.model.vision_tower.", "model.vision_tower.vision_model."),
      ("model.model.multi_modal", "model.multi_modal"),
    ),
    (("vision_tower.", "vision_tower.vision_model."),),
  ],
)
def test_other_spellings(path, spellings):
  before = tensors_of(path).keys()
  rename(path, *spellings)
  assert not before & {key for key in tensors_of(path) if "vision_tower" in key}
  assert_same(read(path)[1], ALL)


def test_a_gemma_alone(tmp_path):
  arrays = make_arrays(["llm/attn/v", "llm/mlp/gate"])
  peft.save(tmp_path / "x", arrays, Lora(**FIELDS), towers=("llm",))
  keys = tensors_of(tmp_path / "x").keys()
  assert (
    "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight" in keys
  )
  lora, found = read(tmp_path / "x", llm=DEPTH)
  assert lora.targets == ("llm/attn/v", "llm/mlp/gate")
  assert_same(found, arrays)


def test_fields_that_are_absent_are_those_of_peft(path):
  configure(path, use_rslora="absent", lora_dropout="absent", bias="absent")
  lora, *_ = peft.open(path, depths=DEPTHS)
  assert (lora.rslora, lora.dropout) == (False, 0.0)


def test_fields_that_change_nothing(path):
  configure(
    path,
    base_model_name_or_path="google/paligemma-3b-pt-224",
    exclude_modules=["lm_head"],
    init_lora_weights="gaussian",
    layers_to_transform=[0, 1, 2],
    megatron_core="megatron.core",
    qalora_group_size=16,
    rank_pattern={},
    target_modules="all-linear",
    trainable_token_indices=None,
  )
  assert peft.open(path, depths=DEPTHS)[0] == Lora(**FIELDS, targets=TARGETS)


def refused(match):
  return pytest.raises(ValueError, match=match)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("alora_invocation_tokens", [1]),
    ("fan_in_fan_out", True),
    ("layer_replication", [[0, 4], [2, 5]]),
    ("lora_bias", True),
    ("target_parameters", ["gate_up_proj"]),
    ("trainable_token_indices", [5]),
    ("use_dora", True),
    ("use_qalora", True),
    ("of_a_later_peft", 1.5),
  ],
)
def test_more_than_plain_lora(path, field, value):
  configure(path, **{field: value})
  with refused(
    rf"^{path}/adapter_config\.json: {field} is .*, which an adapter here "
    r"cannot do; merge it in peft, model\.merge_and_unload\(\)\.save_pretr"
  ):
    peft.open(path, depths=DEPTHS)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_adapters_that_changed_the_base(path, init):
  configure(path, init_lora_weights=init)
  with refused(f"init_lora_weights is '{init}', which changes the matrices"):
    peft.open(path, depths=DEPTHS)


@pytest.mark.parametrize(
  ("kind", "way"),
  [
    ("IA3", "merge it in peft, model.merge_and_unload"),
    ("LOHA", "merge it in peft"),
    ("VERA", "merge it in peft"),
    ("PROMPT_TUNING", "its tokens or layers are none of the model; train LoRA"),
    (None, "its tokens or layers"),
    ("absent", "its tokens or layers"),
  ],
)
def test_wrong_peft_type(path, kind, way):
  configure(path, peft_type=kind)
  found = "None" if kind == "absent" else repr(kind)
  with refused(rf'config\.json: peft_type is {found}, expected "LORA"; {way}'):
    peft.open(path, depths=DEPTHS)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"r": 0}, "LoRA rank is 0, expected a positive int"),
    ({"r": "absent"}, "LoRA rank is None"),
    ({"lora_alpha": "absent"}, "LoRA alpha is None"),
    ({"lora_dropout": 2}, "LoRA dropout is 2"),
    ({"use_rslora": None}, "LoRA rslora is None"),
  ],
)
def test_bad_values(path, fields, message):
  configure(path, **fields)
  with refused(rf"^{path}/adapter_config\.json: {message}"):
    peft.open(path, depths=DEPTHS)


def test_missing_files(path):
  file = path / peft.FILE
  file.rename(path / "adapter_model.bin")
  with refused(r"adapter_model\.bin: pickled weights are refused"):
    peft.open(path, depths=DEPTHS)
  (path / "adapter_model.bin").unlink()
  with refused(r"adapter_model\.safetensors: No such file"):
    peft.open(path, depths=DEPTHS)
  (path / peft.CONFIG).unlink()
  with refused(rf"^{path}/adapter_config\.json: No such file"):
    peft.open(path, depths=DEPTHS)


def test_bad_json(path):
  (path / peft.CONFIG).write_text("{")
  with refused(r"adapter_config\.json: is no JSON"):
    peft.open(path, depths=DEPTHS)


def test_cut_short(path):
  file = path / peft.FILE
  file.write_bytes(file.read_bytes()[:-1])
  with refused(r"adapter_model\.safetensors: .*cut short"):
    peft.open(path, depths=DEPTHS)


STEM = "base_model.model.model.language_model"
Q = f"{STEM}.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
  "key",
  [
    f"{STEM}.embed_tokens.lora_embedding_A",
    f"{STEM}.embed_tokens.lora_A.weight",
    f"{Q}.lora_B.bias",
    f"{Q}.lora_embedding_A.weight",
    f"{Q}.lora_magnitude_vector",
    f"{Q}.lora_C.weight",
    f"{Q}.lora_A.default.weight",
    f"{STEM}.layers.x.self_attn.q_proj.lora_A.weight",
    "base_model.model.lm_head.lora_A.weight",
    "base_model.model.model.vision_tower.head.lora_A.weight",
    "model.language_model.layers.1.self_attn.q_proj.lora_A.weight",
  ],
)
def test_tensors_left_over(path, key):
  rewrite(path, tensors_of(path) | {key: np.zeros((RANK, WIDTH), np.float32)})
  with refused(
    rf"{peft.FILE}: 1 tensors are left over, of no module .*: {key}; merge it"
  ):
    peft.open(path, depths=DEPTHS)


def test_two_spellings_of_one(path):
  tensors = tensors_of(path)
  key = f"{Q}.lora_A.weight"
  tensors[key.replace("model.model.language", "model.language")] = tensors[key]
  rewrite(path, tensors)
  with refused(rf"base_model\.model.* and {key} are one matrix$"):
    peft.open(path, depths=DEPTHS)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_half_of_an_adapter_is_missing(path, layer):
  tensors = tensors_of(path)
  del tensors[f"{STEM}.layers.{layer}.mlp.up_proj.lora_A.weight"]
  rewrite(path, tensors)
  with refused(rf"layers\.{layer}\.mlp\.up_proj\.lora_B\.weight has no lora_A"):
    read(path)


def drop(path, module):
  tensors = tensors_of(path)
  kept = {key: x for key, x in tensors.items() if module not in key}
  assert len(kept) < len(tensors)
  rewrite(path, kept)


@pytest.mark.parametrize(
  "module",
  [
    "language_model.layers.2.mlp.up_proj",
    "language_model.layers.0.self_attn.q_proj",
    "encoder.layers.1.mlp.fc2",
  ],
)
@pytest.mark.parametrize("targets", ["regex", "all-linear", "names"])
def test_a_dropped_adapter_is_missed(path, module, targets):
  if targets == "names":
    names = ["q_proj", "up_proj", "fc2", "linear"]
    configure(path, target_modules=names)
  elif targets != "regex":
    configure(path, target_modules=targets)
  drop(path, module)
  with refused(rf"{peft.FILE}: model\..*{module} has no adapter, though targ"):
    read(path)


@pytest.mark.parametrize(
  "fields",
  [
    dict(target_modules=["up_proj"], layers_to_transform=[0, 2]),
    dict(
      target_modules=["up_proj"],
      layers_to_transform=[0, 2],
      layers_pattern="layers",
    ),
    dict(target_modules=["0.mlp.up_proj", "2.mlp.up_proj"]),
    dict(target_modules=r".*layers\.[02]\.mlp\.up_proj"),
    dict(
      target_modules=["up_proj"],
      exclude_modules=r".*layers\.1\..*",
    ),
    dict(
      target_modules=["up_proj"],
      exclude_modules=["layers.1.mlp.up_proj"],
    ),
  ],
)
def test_layers_without_adapter_are_zeros(tmp_path, fields):
  arrays = make_arrays(["llm/mlp/up"])
  path = tmp_path / "x"
  peft.save(path, arrays, Lora(**FIELDS), towers=TOWERS)
  configure(path, **fields)
  drop(path, "layers.1.")
  lora, found = read(path)
  assert lora.targets == ("llm/mlp/up",)
  for name, array in arrays.items():
    array[1] = 0
    np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_that_differ(tmp_path, rslora):
  """What peft computes of a module: scale B A x, with a scale of its own."""
  arrays = make_arrays(["llm/attn/v", "llm/mlp/up"])
  path = tmp_path / "x"
  lora = Lora(rank=RANK, alpha=0.5, rslora=rslora)
  peft.save(path, arrays, lora, towers=TOWERS)
  rng = np.random.default_rng(1)
  tensors = tensors_of(path)
  v = f"{STEM}.layers.1.self_attn.v_proj"
  tensors[f"{v}.lora_A.weight"] = rng.normal(size=(5, WIDTH)).astype("f4")
  tensors[f"{v}.lora_B.weight"] = rng.normal(size=(WIDTH, 5)).astype("f4")
  rewrite(path, tensors)
  configure(
    path,
    rank_pattern={"layers.1.self_attn.v_proj": 5},
    alpha_pattern={r"layers\.[12]\.mlp\.up_proj": 3, "no_such": 9},
  )
  lora, found = read(path)
  assert (lora.rank, lora.alpha, lora.rslora) == (5, 0.5, rslora)
  for name, module in (
    ("attn/lora_v", "self_attn.v_proj"),
    ("mlp/lora_up", "mlp.up_proj"),
  ):
    for layer in range(DEPTH):
      a, b = (
        tensors[f"{STEM}.layers.{layer}.{module}.lora_{x}.weight"] for x in "AB"
      )
      alpha = 3 if module.startswith("mlp") and layer > 0 else 0.5
      scale = alpha / (len(a) ** 0.5 if rslora else len(a))
      ours = found[f"llm/layers/{name}/a"][layer]
      ours = ours @ found[f"llm/layers/{name}/b"][layer] * lora.scale
      np.testing.assert_allclose(ours.T, scale * b @ a, rtol=1e-5, atol=1e-6)


def test_a_rank_that_is_not_the_config_s(path):
  configure(path, rank_pattern={"layers.1.self_attn.v_proj": 5})
  with refused(r"layers\.1\.self_attn\.v_proj\..*: rank 2, expected 5 as in a"):
    read(path)


@pytest.mark.parametrize("fields", [{"rank_pattern": {"(": 3}}, {"r": "x"}])
def test_malformed_patterns(path, fields):
  configure(path, **fields)
  with refused(r"adapter_config\.json: (malformed: |LoRA rank is 'x')"):
    read(path)


def test_whole_tensors_beside_the_adapter(path):
  bias = np.arange(5, dtype=np.float32)
  stem = "base_model.model.model"
  q = f"{stem}.vision_tower.encoder.layers.2.self_attn.q_proj"
  extra = {
    f"{q}.base_layer.bias": bias,
    f"{stem}.vision_tower.post_layernorm.bias": bias + 1,
    f"{stem}.multi_modal_projector.linear.bias": bias + 2,
    f"{stem}.language_model.norm.weight": bias + 3,
  }
  rewrite(path, tensors_of(path) | extra)
  configure(path, bias="all", modules_to_save=["norm"])
  _, found, replaced = peft.open(path, depths=DEPTHS)
  assert found.keys() == ALL.keys()
  assert {key: int(x[0]) for key, x in replaced.items()} == {
    "vision.encoder.layers.2.self_attn.q_proj.bias": 0,
    "vision.post_layernorm.bias": 1,
    "projector.linear.bias": 2,
    "text.norm.weight": 3,
  }


def test_a_layer_beyond_the_model(path):
  rename(path, ("layers.2.mlp.up_proj", "layers.999999999999.mlp.up_proj"))
  with refused(
    "999999999999.*: the model has 3 layers there, adapters of anot"
  ):
    read(path)


def test_a_tower_that_the_model_lacks(path):
  with refused("lora_A.weight: the model has no image tower"):
    peft.open(path, depths={"llm": DEPTH})


def test_no_tensors(path):
  rewrite(path, {})
  with refused(f"{peft.FILE}: holds no tensors"):
    peft.open(path, depths=DEPTHS)


@pytest.mark.parametrize(
  "array", [np.zeros((RANK, WIDTH), np.int32), np.zeros(WIDTH, np.float32)]
)
def test_no_matrix_of_floats(path, array):
  rewrite(path, tensors_of(path) | {f"{Q}.lora_A.weight": array})
  with refused(rf"{Q}\.lora_A\.weight: .*, expected a matrix of floats"):
    peft.open(path, depths=DEPTHS)


def test_layers_of_different_shape(path):
  bad = {f"{Q}.lora_A.weight": np.zeros((RANK, 5), np.float32)}
  rewrite(path, tensors_of(path) | bad)
  with refused(r"llm/layers/attn/lora_q/a: layers differ in shape: \[\(5, 2\)"):
    peft.open(path, depths=DEPTHS)


def test_where_it_cannot_be_written(path):
  with refused(f"^{path}: exists, expected a new folder"):
    peft.save(path, ALL, Lora(**FIELDS), towers=TOWERS)
  with refused(r"^gs://x/y: expected a folder of the local file system$"):
    peft.save("gs://x/y", ALL, Lora(**FIELDS), towers=TOWERS)
