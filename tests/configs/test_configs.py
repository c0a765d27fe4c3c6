"""Every config builds, names a wrong argument, and starts no device."""

import importlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import arguments, common, tuning
from configs.transfers import forkme, photos, published
from paligemma import parameters, tree, variants
from paligemma.data import location
from paligemma.lora import config as lora_config
from tests.configs.transfer_facts import FACTS
from trainers import workdir

ROOT = pathlib.Path(__file__).parents[2]

# Config -> an argument of it, and values that this has to set. Those of the
# published transfers are in test_transfers.py.
CONFIGS = {
  "configs.siglip.finetune": (
    "variant=siglip_l16_256",
    {"res": 256, "weight_decay": 0.0, "trainable": (".*",)},
  ),
  "configs.siglip.forkme": (
    "tune=lora,batch_size=64",
    {"batch_size": 64, "learning_rate": 2e-4, "res": 224},
  ),
  "configs.siglip.lit_coco": (
    "loss=softmax",
    {"loss": "softmax", "total_steps": 5000, "weight_decay": 0.01},
  ),
  "configs.siglip.shapes": (
    "tune=lit",
    {"learning_rate": 2e-3, "trainable": ("txt/.*", "t", "b")},
  ),
  "configs.siglip.siglip2": (
    "variant=siglip2_so400m16_naflex",
    {"batch_size": 32768, "total_examples": 40_000_000_000},
  ),
  "configs.stages.pretrain_tiny": (
    "batch_size=3",
    {"batch_size": 3, "optimizer": "adam", "trainable": (".*",)},
  ),
  "configs.stages.pretrain_scenes": (
    "batch_size=3",
    {"batch_size": 3, "res": 112, "learning_rate": 1e-3},
  ),
  "configs.gemma.forkme": (
    "variant=gemma_2b,tune=full",
    {"optimizer": "adam", "trainable": (".*",), "text_len": 1024},
  ),
  "configs.stages.stage0_gemma": (
    "variant=gemma2_2b,val=a.jsonl",
    {"text_len": 8192, "trainable": (".*",), "total_epochs": 1.0, "init": ""},
  ),
  "configs.stages.stage0_siglip": (
    "variant=siglip_b16_224,train=a.jsonl",
    {"batch_size": 32_768, "trainable": (".*",), "res": 224, "init": ""},
  ),
  "configs.stages.stage1": (
    "variant=paligemma2_3b,img=,llm=",
    {"init": "", "learning_rate": 1e-5, "total_examples": 1_000_000_000},
  ),
  "configs.stages.stage2_448": (
    "init=a.npz,variant=paligemma2_10b",
    {"init": "a.npz", "res": 448, "text_len": 512, "learning_rate": 5e-6},
  ),
  "configs.stages.stage2_896": (
    "examples=5",
    {"init": "runs/stage2_448", "res": 896, "total_examples": 5},
  ),
  "configs.stages.stage3": (
    "train=a.jsonl,res=224,init=runs/stage1",
    {"res": 224, "optimizer": "adam", "learning_rate": 1e-5},
  ),
  "configs.transfers.digits": (
    "epochs=0.5",
    {"total_epochs": 0.5, "optimizer": "sgd", "res": 56},
  ),
  "configs.transfers.forkme": (
    "variant=paligemma2_10b,res=448,tune=image",
    {"res": 448, "trainable": ("img/.*",), "frozen_dtype": "bfloat16"},
  ),
  "configs.transfers.mix": (
    "res=448,transfers=gqa+vqav2",
    {"text_len": 512, "init": "paligemma_3b_pt_448", "total_epochs": 1.0},
  ),
  "configs.transfers.photos": (
    "train=a.jsonl,epochs=3",
    {"total_epochs": 3.0, "res": 112, "keep_best": "val/AP50"},
  ),
  "configs.transfers.scenes": (
    "train=a.jsonl",
    {"batch_size": 16, "optimizer": "adam", "trainable": (".*",)},
  ),
  "configs.transfers.vertexai_l4": (
    "train=a.jsonl",
    {"batch_size": 4, "total_epochs": 1.0, "clip_norm": 1.0},
  ),
}
PUBLISHED = {f"configs.transfers.{task}" for task in FACTS}


def test_every_config_is_tested():
  found = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "configs").rglob("*.py")
  }
  none = {
    "__init__",
    "arguments",
    "common",
    "tuning",
    "gemma.__init__",
    "siglip.__init__",
    "stages.__init__",
    "stages.pretraining",
    "transfers.__init__",
    "transfers.published",
  }
  assert (
    found - {f"configs.{name}" for name in none} == CONFIGS.keys() | PUBLISHED
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_builds(name):
  get_config = importlib.import_module(name).get_config
  argument, values = CONFIGS[name]
  plain, config = get_config(), get_config(argument)
  assert isinstance(config, ConfigDict)
  for built in (plain, config):
    common.complete(built)  # its keys are those of the table
    json.dumps(workdir.as_json(built))
    known = variants.PALIGEMMA | variants.SIGLIP | variants.GEMMA
    assert built.model.variant in known
  for key, value in values.items():
    assert config[key] == value


@pytest.mark.parametrize("name", CONFIGS)
def test_takes_its_own_arguments_alone(name):
  get_config = importlib.import_module(name).get_config
  with pytest.raises(ValueError, match=r'"tran", expected one of: '):
    get_config("tran=a.jsonl")


def test_the_default_is_what_the_paper_notebook_does():
  config = forkme.get_config()
  assert config.trainable == (r"llm/layers/(\d+/)?attn/.*",)
  assert config.frozen_dtype == "bfloat16"
  assert (config.optimizer, config.learning_rate) == ("sgd", 0.03)
  assert not config.optimizer_args
  assert config.schedule == (
    (".*", {"decay": "cosine", "warmup_percent": 0.1}),
  )
  assert config.ema_decay is None
  assert config.clip_norm is None


def test_a_share_of_train_is_val():
  config = forkme.get_config("train=a.jsonl,val=0.1")
  config.seed = 7  # as by --config.seed=7
  for spec, part in (
    (config.train.sources.main, "train"),
    (config.evals.pplx.source, "val"),
    (config.evals.val.source, "val"),
  ):
    assert (spec.path, spec.part, spec.seed) == ("a.jsonl", part, 7)
    assert spec.val_share == 0.1
  config = forkme.get_config("train=a.jsonl,val=b.jsonl")
  assert config.evals.val.source.path == "b.jsonl"
  assert config.train.sources.main.val_share is None


def test_augmented_boxes_follow_the_pixels():
  assert forkme.get_config().train.augment == ()
  ops = photos.get_config().train.augment
  assert ops[:2] == forkme.get_config("augment=true").train.augment[:2]
  pixels = np.zeros((90, 120, 3), np.uint8)
  pixels[30:60, 45:75] = 255
  line = {"objects": [{"box": (30, 45, 60, 75), "label": "cat"}]}
  for seed in range(9):
    rng = np.random.default_rng(seed)
    example = line | {"image": pixels, "suffix": "of the whole picture"}
    for op in ops:
      example = op(example, rng)
    height, width, _ = example["image"].shape
    bright = example["image"][..., 0] == 255
    (found,) = location.parse(example["suffix"], (height, width))
    ends = [(min(i), max(i) + 1) for i in np.nonzero(bright)]
    np.testing.assert_allclose(
      found.box,
      (ends[0][0], ends[1][0], ends[0][1], ends[1][1]),
      atol=max(height, width) / 32 + 1,
    )


def test_reading_a_config_starts_no_device():
  script = """
    import importlib, sys
    for name in sys.argv[1:]:
      importlib.import_module(name).get_config()
    if "jax" in sys.modules:
      from jax._src import xla_bridge
      assert not xla_bridge.backends_are_initialized()
    print(sorted({"tensorflow", "torch"} & set(sys.modules)))
  """
  lines = [line.removeprefix("    ") for line in script.splitlines()]
  result = subprocess.run(
    [sys.executable, "-c", "\n".join(lines), *CONFIGS, *PUBLISHED],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == "[]"


def parse(argument):
  return arguments.parse(
    argument, variant="a", res=224, rate=0.5, cache=False, tune="attention"
  )


def test_argument():
  assert vars(parse(None)) == vars(parse("")) == vars(parse(","))
  assert vars(parse("res=448, rate=1,cache=true,variant=x=y,")) == {
    "variant": "x=y",
    "res": 448,
    "rate": 1.0,
    "cache": True,
    "tune": "attention",
  }
  assert parse("variant=").variant == ""
  assert parse("res=1,res=2").res == 2
  assert parse("cache=0").cache is False


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("rez=1", '"rez", expected one of: cache, .* Did you mean "res"'),
    ("zzzz=1", '"zzzz", expected one of: cache, rate, res, tune, variant.$'),
    ("res=4.5", '"res=4.5": expected res=<int>, for example res=224'),
    ("rate=fast", '"rate=fast": expected rate=<float>, for example rate=0.5'),
    ("cache=yes", '"cache=yes": expected cache=<bool>, for example cache=F'),
    ("variant", '"variant": expected variant=<str>, for example variant=a'),
    ("res", '"res": expected res=<int>'),
  ],
)
def test_a_wrong_argument_is_named(argument, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(argument)
  assert "\n" not in str(caught.value)


def test_what_trains_by_name():
  names = [
    "img/embedding/kernel",
    "img/head/kernel",
    "llm/embedder/input_embedding",
    "llm/layers/attn/q_einsum/w",
    "llm/layers/11/attn/q_einsum/w",
    "llm/layers/mlp/linear",
    "llm/layers/mlp/lora_up/a",
    "img/head/lora_head/b",
  ]
  found = {
    tune: [
      n for n, hit in tree.match_any(method.trainable, names).items() if hit
    ]
    for tune, method in tuning.METHODS.items()
  }
  adapters = names[6:]
  assert found == {
    "attention": names[3:5],
    "full": names,
    "decoder": names[2:7],
    "image": [*names[:2], names[7]],
    "head": [names[1], names[7]],
    "lora": adapters,
    "qlora_int8": adapters,
    "qlora_int4": adapters,
    "qlora_nf4": adapters,
  }
  with pytest.raises(ValueError, match=r'"hed", expected .*mean "head"'):
    tuning.method("hed")


def test_every_method_of_tuning():
  plain = forkme.get_config("tune=decoder")
  assert (plain.optimizer, plain.learning_rate) == ("sgd", 0.03)
  assert "lora" not in plain.model
  for tune, method in tuning.METHODS.items():
    config = forkme.get_config(f"tune={tune},dtype=float16")
    assert config.optimizer == method.optimizer
    assert config.learning_rate == method.learning_rate
    assert config.clip_norm == method.clip_norm
    assert config.frozen_dtype == (method.quantize or "float16")
    if method.lora:
      assert lora_config.Lora(**config.model.lora) == lora_config.Lora()
      assert config.trainable == (parameters.ADAPTERS,)
  with pytest.raises(ValueError, match=r'unknown tune "lor", .*mean "lora"'):
    forkme.get_config("tune=lor")


def test_all_weights_are_tuned_as_by_the_forkme_of_big_vision():
  config = forkme.get_config("tune=full")
  assert (config.optimizer, config.learning_rate) == ("adam", 1e-5)
  assert not config.optimizer_args  # b2 is 0.999 by default there and here
  assert config.schedule == (
    (".*", {"decay": "cosine", "warmup_percent": 0.05}),
  )
  assert config.clip_norm == 1.0
  assert (config.batch_size, config.total_epochs) == (32, 15.0)
  assert (config.res, config.text_len, config.label_smoothing) == (224, 128, 0)
  assert config.trainable == (".*",)


def test_values_by_resolution():
  values = {448: "b", 224: "a"}
  found = [published.at(res, values) for res in (56, 224, 300, 448, 896)]
  assert found == ["a", "a", "a", "b", "b"]
