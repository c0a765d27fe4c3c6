"""Adapters of peft compute the same here, and those from here in peft."""

import copy
import re

import jax
import numpy as np
import pytest

import paligemma
from paligemma import parameters, tree
from paligemma.checkpoints import safetensors
from paligemma.lora import config as lora_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.parity.test_single_towers import as_gemma  # noqa: E402
from tests.parity.test_transformers import (  # noqa: E402
  images_and_ids,
  make_inputs,
  with_images,
)
from tests.parity.transformers_models import random_model, random_siglip  # noqa: E402

# Asked of transformers by peft 0.21.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
BOUND = 1e-4
MERGED = 1e-5  # of the largest logit

# Style -> Lora; what peft is told to adapt, and what that is here.
CASES = {
  "paligemma1": (
    {},
    "all-linear",
    [x for x in lora_config.TARGETS if not x.startswith("txt/")],
  ),
  "paligemma1_mha": (
    {"rank": 1, "alpha": 0.5},
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|up_proj)",
    ("llm/attn/q", "llm/attn/k", "llm/attn/v", "llm/attn/out", "llm/mlp/up"),
  ),
  "paligemma2_2b": (
    {"rank": 3, "alpha": 4, "rslora": True},
    ["k_proj", "gate_proj", "fc2"],
    ("llm/attn/k", "llm/mlp/gate", "img/attn/k", "img/mlp/down"),
  ),
  "paligemma2_27b": (
    {"rank": 5, "alpha": 7.5, "dropout": 0.25},
    ["multi_modal_projector.linear", "o_proj", "out_proj", "down_proj", "fc1"],
    ("llm/attn/out", "llm/mlp/down", "img/attn/out", "img/mlp/up", "img/head"),
  ),
}


class Case:
  """A random model in a folder, and prompts with what it answers."""

  def __init__(self, style, fields, modules, targets, folder):
    self.fields = {"rank": 4, "alpha": 6.0, **fields}
    self.modules, self.targets, self.folder = modules, list(targets), folder
    window = 3 if style.startswith("paligemma2") else None
    theirs = random_model(style, seed=6, sliding_window=window)
    theirs.save_pretrained(folder / "base")
    self.model, self.params = paligemma.load(folder / "base")
    self.vocab_size = self.model.llm.vocab_size
    self.inputs = make_inputs(6, theirs.config, self.vocab_size, images=None)
    self.base = self.logits_there(theirs)

  def logits_here(self, model, params):
    inputs = self.inputs
    logits, _ = jax.jit(model.apply)(
      {"params": params},
      inputs["image"],
      inputs["text"],
      inputs["mask_ar"],
      input_mask=inputs["mask_input"],
    )
    return np.asarray(logits)[inputs["mask_input"]]

  @torch.no_grad()
  def logits_there(self, theirs):
    pixels, ids = images_and_ids(theirs, self.inputs)
    length = ids.shape[1]
    logits = theirs(
      input_ids=ids,
      pixel_values=pixels,
      attention_mask=with_images(self.inputs["mask_input"], length, 1),
      token_type_ids=with_images(self.inputs["mask_ar"], length, 0),
    ).logits
    mask = self.inputs["mask_input"]
    return logits[:, -mask.shape[1] :, : self.vocab_size].numpy()[mask]

  def open_there(self, folder):
    cls = transformers.PaliGemmaForConditionalGeneration
    return cls.from_pretrained(folder, attn_implementation="eager").eval()

  def assert_adapted(self, logits):
    assert np.abs(logits - self.base).max() > 0.1


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("case")
  return Case(request.param, *CASES[request.param], folder)


def test_of_peft_here(case, agree):
  config = peft.LoraConfig(
    r=case.fields["rank"],
    lora_alpha=case.fields["alpha"],
    use_rslora=case.fields.get("rslora", False),
    lora_dropout=case.fields.get("dropout", 0.0),
    target_modules=case.modules,
    task_type="CAUSAL_LM",
  )
  theirs = peft.get_peft_model(case.open_there(case.folder / "base"), config)
  generator = torch.Generator().manual_seed(0)
  for name, parameter in theirs.named_parameters():
    if "lora_B" in name:
      draw = torch.randn(parameter.shape, generator=generator)
      parameter.data.copy_(0.3 * draw)
  theirs.eval().save_pretrained(case.folder / "theirs")
  expected = case.logits_there(theirs)
  case.assert_adapted(expected)

  model, params = paligemma.load_adapter(
    case.folder / "theirs", case.model, case.params
  )
  assert model.llm.lora == lora_config.Lora(**case.fields, targets=case.targets)
  adapted = case.logits_here(model, params)
  agree("logits, adapter of peft", adapted, expected, BOUND)

  model, params = paligemma.merge_lora(model, params)
  merged = case.logits_here(model, params)
  agree("logits, merged", merged, adapted, MERGED * np.abs(adapted).max())
  paligemma.save(case.folder / "merged", model, params, format="huggingface")
  back = case.logits_there(case.open_there(case.folder / "merged"))
  unloaded = case.logits_there(theirs.merge_and_unload())
  agree("logits, merged here and there", back, unloaded, BOUND)


# What goes beyond one rank of all layers -> fields of LoraConfig.
BEYOND = {
  "some layers": dict(
    target_modules=["q_proj", "up_proj", "fc1"],
    layers_to_transform=[0],
    layers_pattern="layers",
  ),
  "ranks and alphas": dict(
    target_modules=["q_proj", "down_proj", "linear"],
    rank_pattern={r"language_model\.layers\.0\.self_attn\.q_proj": 6},
    alpha_pattern={"q_proj": 3, "linear": 20},
    use_rslora=True,
  ),
  "all biases": dict(target_modules=["v_proj", "out_proj"], bias="all"),
  "biases of its own": dict(target_modules="all-linear", bias="lora_only"),
  "the projector": dict(
    target_modules=["k_proj"], modules_to_save=["multi_modal_projector"]
  ),
  "norms": dict(
    target_modules=["k_proj"],
    modules_to_save=["input_layernorm", "layer_norm2", "patch_embedding"],
  ),
}


@pytest.mark.parametrize("beyond", BEYOND)
def test_more_than_one_rank_of_all_layers(case, beyond, agree, tmp_path):
  config = peft.LoraConfig(
    r=4, lora_alpha=6.0, task_type="CAUSAL_LM", **BEYOND[beyond]
  )
  theirs = peft.get_peft_model(case.open_there(case.folder / "base"), config)
  generator = torch.Generator().manual_seed(0)
  for name, parameter in theirs.named_parameters():
    if parameter.requires_grad and "lora_A" not in name:
      draw = torch.randn(parameter.shape, generator=generator)
      parameter.data.add_(0.3 * draw)
  theirs.eval().save_pretrained(tmp_path / "theirs")
  expected = case.logits_there(theirs)
  case.assert_adapted(expected)
  found = paligemma.load_adapter(tmp_path / "theirs", case.model, case.params)
  adapted = case.logits_here(*found)
  agree(f"logits, adapter of peft: {beyond}", adapted, expected, BOUND)


def test_under_another_name(case, tmp_path):
  config = peft.LoraConfig(r=4, target_modules=["q_proj"])
  base = case.open_there(case.folder / "base")
  theirs = peft.get_peft_model(base, config, adapter_name="mine")
  theirs.save_pretrained(tmp_path)
  assert (tmp_path / "mine").is_dir()
  model, _ = paligemma.load_adapter(tmp_path, case.model, case.params)
  assert model.llm.lora.rank == 4


OTHERS = {
  "DoRA": peft.LoraConfig(use_dora=True, target_modules=["q_proj"]),
  "IA3": peft.IA3Config(
    target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
  ),
  "LoHa": peft.LoHaConfig(target_modules=["q_proj"]),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_way_that_the_message_names(case, other, agree, tmp_path):
  base = case.open_there(case.folder / "base")
  theirs = peft.get_peft_model(base, copy.deepcopy(OTHERS[other])).eval()
  generator = torch.Generator().manual_seed(0)
  for parameter in theirs.parameters():
    if parameter.requires_grad:
      draw = torch.randn(parameter.shape, generator=generator)
      parameter.data.add_(0.3 * draw)
  theirs.save_pretrained(tmp_path / "theirs")
  message = r"merge it in peft, model\.merge_and_unload\(\)\.save_pretrained"
  with pytest.raises(ValueError, match=message):
    paligemma.load_adapter(tmp_path / "theirs", case.model, case.params)
  expected = case.logits_there(theirs)
  case.assert_adapted(expected)
  theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
  found = case.logits_here(*paligemma.load(tmp_path / "merged"))
  agree(f"logits, {other} merged", found, expected, BOUND)


def test_from_here_in_peft(case, agree):
  model, params = randomized(
    *paligemma.enable_lora(
      case.model, case.params, **case.fields, targets=case.targets
    )
  )
  adapted = case.logits_here(model, params)
  case.assert_adapted(adapted)

  paligemma.save_adapter(case.folder / "ours", model, params)
  theirs = peft.PeftModel.from_pretrained(
    case.open_there(case.folder / "base"), case.folder / "ours"
  ).eval()
  assert_every_tensor_is_used(theirs, case.folder / "ours")
  expected = case.logits_there(theirs)
  agree("logits, adapter from here", adapted, expected, BOUND)


def test_a_gemma_alone(tmp_path, agree):
  gemma = as_gemma(random_model("paligemma2_2b", seed=6, sliding_window=3))
  gemma.save_pretrained(tmp_path / "base")
  base = paligemma.load(tmp_path / "base")
  model, params = randomized(*paligemma.enable_lora(*base, rank=3))
  text = np.random.default_rng(0).integers(3, 60, (2, 11))
  ours, _ = jax.jit(model.apply)({"params": params}, None, text, text * 0 + 1)

  paligemma.save_adapter(tmp_path / "ours", model, params)
  theirs = peft.PeftModel.from_pretrained(gemma, tmp_path / "ours").eval()
  assert_every_tensor_is_used(theirs, tmp_path / "ours")
  with torch.no_grad():
    expected = theirs(torch.from_numpy(text)).logits.numpy()
  agree("logits, adapter of Gemma alone", ours, expected, BOUND)

  theirs.save_pretrained(tmp_path / "theirs")
  _, back = paligemma.load_adapter(tmp_path / "theirs", *base)
  jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("naflex", [False, True])
def test_a_siglip(naflex, agree, tmp_path):
  theirs = random_siglip(3, naflex=naflex)
  theirs.save_pretrained(tmp_path / "base")
  base = paligemma.load(tmp_path / "base")
  tower = base[0].img
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 30, (4, base[0].txt.text_len))
  if naflex:
    index = np.arange(4, dtype=np.int32)[None].repeat(4, 0)
    patches = rng.normal(size=(4, 4, 3 * tower.patch_size**2)).astype("f4")
    image = (patches, np.ones_like(index), index // 2, index % 2)
    there = dict(
      pixel_values=torch.from_numpy(patches),
      pixel_attention_mask=torch.ones(4, 4, dtype=torch.int32),
      spatial_shapes=torch.full((4, 2), 2),
    )
  else:
    side = theirs.config.vision_config.image_size
    image = rng.normal(size=(4, side, side, 3)).astype("f4")
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    there = dict(pixel_values=pixels)

  @torch.no_grad()
  def logits_there(model):
    ids = torch.from_numpy(tokens)
    return model(input_ids=ids, **there).logits_per_image.numpy()

  def logits_here(model, params):
    zimg, ztxt, out = jax.jit(model.apply)({"params": params}, image, tokens)
    return np.asarray(zimg @ ztxt.T * out["t"][0] + out["b"][0])

  before = logits_there(theirs)
  agree("logits, SigLIP", logits_here(*base), before, BOUND)
  adapted = randomized(
    *paligemma.enable_lora(*base, rank=3, targets=["img/.*", "txt/.*"])
  )
  paligemma.save_adapter(tmp_path / "ours", *adapted)
  loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
  assert_every_tensor_is_used(loaded, tmp_path / "ours")
  expected = logits_there(loaded)
  assert np.abs(expected - before).max() > 0.1
  agree("logits, adapter of SigLIP", logits_here(*adapted), expected, BOUND)

  loaded.save_pretrained(tmp_path / "theirs")
  _, back = paligemma.load_adapter(tmp_path / "theirs", *base)
  jax.tree.map(np.testing.assert_array_equal, back, adapted[1])

  # With a bias of the model itself, which is trained beside the adapters.
  config = peft.LoraConfig(
    r=2, target_modules=["q_proj", "fc1"], exclude_modules=".*vision.*head.*",
    bias="lora_only",
  )  # fmt: skip
  kind = transformers.Siglip2Model if naflex else transformers.SiglipModel
  again = peft.get_peft_model(kind.from_pretrained(tmp_path / "base"), config)
  generator = torch.Generator().manual_seed(0)
  for name, parameter in again.named_parameters():
    if parameter.requires_grad and "lora_A" not in name:
      draw = torch.randn(parameter.shape, generator=generator)
      parameter.data.add_(0.3 * draw)
  again.eval().save_pretrained(tmp_path / "biases")
  found = paligemma.load_adapter(tmp_path / "biases", *base)
  expected = logits_there(again)
  agree("logits, peft of SigLIP", logits_here(*found), expected, BOUND)


def randomized(model, params):
  """B, which starts at zero, drawn as well."""
  rng = np.random.default_rng(0)
  flat = tree.flatten(params)
  for name, array in flat.items():
    if re.fullmatch(parameters.ADAPTERS, name) and name.endswith("/b"):
      flat[name] = rng.normal(0, 0.3, array.shape).astype(np.float32)
  return model, tree.unflatten(flat)


def assert_every_tensor_is_used(theirs, folder):
  names = (name for name, _ in theirs.named_parameters())
  names = {n.replace(".default.", ".") for n in names if "lora_" in n}
  assert names == safetensors.open(folder / "adapter_model.safetensors").keys()
