"""The published transfers: their values, texts, two steps and a metric each."""

import functools
import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from configs import tuning
from paligemma import metrics, tree, variants
from paligemma.data import image_ops, text_ops
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.models import paligemma as paligemma_model
from paligemma.training import optimizers, sharding
from scripts.datasets import catalog
from tests.configs import transfer_facts
from tests.configs.transfer_facts import FACTS, RESOLUTIONS, STRIDES
from trainers import inputs, state, tasks, workdir
from trainers.plan import Plan

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
CODEC = ROOT / "tests/goldens/mask_codec/mask_codec.npz"
VARIANTS = ("paligemma_3b", "paligemma2_3b", "paligemma2_10b", "paligemma2_28b")
KERNELS = ((".*/kernel", 1.0),)
RESIZES = {True: "reference_uint8", False: "aliased_uint8", None: "aliased"}


def config_of(task, **arguments):
  module = importlib.import_module(f"configs.transfers.{task}")
  given = ",".join(f"{name}={value}" for name, value in arguments.items())
  return module.get_config(given)


def of_tfds(task, **arguments):
  """The config of a task on the examples of TFDS; videos have none."""
  data = {} if task in STRIDES else {"data": "tfds"}
  return config_of(task, **data, **arguments)


def test_all_published_transfers_are_here():
  found = {path.stem for path in (ROOT / "configs/transfers").glob("*.py")}
  found -= {"__init__", "published"}
  found -= {"forkme", "vertexai_l4", "digits", "mix", "photos", "scenes"}
  assert found == FACTS.keys()
  # With forkme and vertexai_l4 and without ours, there are 34.
  assert len(found - {"detection"} | {"forkme", "vertexai_l4"}) == 34


def test_differences_on_purpose_name_transfers_and_a_reason():
  known = FACTS.keys() | {"forkme", "vertexai_l4"}
  for difference in transfer_facts.DIFFERENCES:
    assert known >= set(difference.transfers), difference
    assert difference.there != difference.here
    assert difference.why


@pytest.mark.parametrize("task", FACTS)
def test_defaults(task):
  config = config_of(task)
  assert config.res == FACTS[task].res
  assert config.model.variant == "paligemma_3b"
  assert config.init == f"paligemma_3b_pt_{config.res}"
  assert config.tokenizer == "paligemma_tokenizer.model"
  json.dumps(workdir.as_json(config))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", FACTS)
def test_values(task, variant):
  facts = FACTS[task]
  for res in RESOLUTIONS:
    config = config_of(task, variant=variant, res=res)
    epochs, rate, batch, smoothing, dropout, decay = facts.at(res)
    assert config.get("total_epochs") == epochs, res
    assert config.learning_rate == rate, res
    assert config.batch_size == batch, res
    assert config.label_smoothing == smoothing
    assert config.model.llm.dropout == dropout
    assert config.model.img.dropout == 0
    assert config.weight_decay == decay, res
    assert config.text_len == facts.text_len
    assert config.frames == facts.frames
    assert config.init == f"{variant}_pt_{res}"
    assert (config.model.variant, config.res) == (variant, res)
    name, arguments, clip_norm = facts.optimizer
    assert config.optimizer == name
    assert config.optimizer_args.to_dict() == arguments
    assert config.clip_norm == clip_norm
    assert config.schedule == ((".*", facts.schedule),)
    if task == "pope":
      assert config.trainable == ()
      continue
    tune = facts.at(res, "tune")
    assert config.trainable == tuning.METHODS[tune].trainable, res
    assert config.weight_decay_mults == (KERNELS if tune == "full" else ())
  # The final soft cap of Gemma 2 is off, as published.
  overrides = variants.PALIGEMMA[variant].llm_overrides
  assert overrides.get("final_logits_softcap") is None
  assert "final_logits_softcap" not in config.model.llm


@pytest.mark.parametrize("task", ["cococap", "coco35l", "textcaps"])
def test_crops_of_training_images(task):
  crops = {
    "rs": (),
    "ic": (image_ops.InceptionCrop(area=(0.5, 1.0)),),
    "rc": (image_ops.ResizeSmall(512), image_ops.RandomCrop((448, 448))),
  }
  for crop, expected in crops.items():
    config = config_of(task, crop=crop, res=448)
    assert config.train.augment == expected
    assert config.train.resize == "aliased_uint8"
    for spec in config.evals.values():
      assert not any(op in expected for op in spec.ops or config.train.ops)


def test_vertexai_l4():
  """Plain SGD of all weights at 0.1: the optimizer has no state."""
  config = config_of("vertexai_l4")
  assert (config.optimizer, config.optimizer_args.to_dict()) == ("sgd", {})
  assert (config.learning_rate, config.weight_decay) == (0.1, 0.0)
  assert config.trainable == tuning.METHODS["full"].trainable
  assert config.schedule == (
    (".*", {"decay": "cosine", "warmup_percent": 0.05}),
  )
  assert (config.clip_norm, config.label_smoothing) == (1.0, 0.0)
  assert (config.batch_size, config.total_epochs) == (4, 1.0)
  assert (config.res, config.text_len) == (224, 128)
  assert config.train.ops == (text_ops.Format("caption en"),)
  assert config.train.resize == "reference_uint8"
  assert config.train.too_long == "truncate"
  assert config.model.llm.dropout == config.model.img.dropout == 0
  assert not config.evals
  kept, _ = optimizers.make(
    ["img/a", "llm/b"], total_steps=3, optimizer=config.optimizer
  )
  ones = {"img/a": np.ones(3), "llm/b": np.ones(5)}
  assert sum(x.size for x in jax.tree.leaves(kept.init(ones))) == 1


def test_values_that_are_their_own():
  assert config_of("coco35l").total_examples == 5 * 566_435
  assert len(config_of("coco35l").train.sources) == 35
  assert len(config_of("coco35l").evals) == 1 + 35 + 36
  weights = {
    name: source.weight
    for name, source in of_tfds("chartqa").train.sources.items()
  }
  assert weights == {"human": 7398, "augmented": 20901}


@pytest.mark.parametrize("task", FACTS)
def test_evaluators(task):
  facts = FACTS[task]
  config = of_tfds(task)
  specs = {
    name: spec for name, spec in config.evals.items() if spec.kind == "generate"
  }
  if task != "coco35l":
    assert specs.keys() == facts.evals.keys()
  for name, where in facts.evals.items():
    spec = specs[name]
    if where:
      source = spec.source.to_dict()
      assert f"{source['name']}:{source['split']}" == where
    hidden = name in facts.hidden
    assert spec.metric == (None if hidden else facts.metric)
    assert spec.answer_key == facts.key
    assert spec.sampler == facts.sampler
    assert spec.max_decode_len is spec.text_len is spec.too_long is None
    resize = spec.resize or config.train.resize
    assert resize == RESIZES[facts.antialias[1]]
    assert spec.batch_size == facts.eval_batch_size
  assert config.train.resize == RESIZES[facts.antialias[0]]
  assert config.train.too_long == "truncate"
  assert config.train.on_bad == "stop"
  if "pplx" in config.evals:
    assert config.evals.pplx.source.to_dict() == (
      specs[next(iter(facts.evals))].source.to_dict()
    )
    assert config.evals.pplx.resize is None
  assert ("pplx" in config.evals) == (task not in ("pope", "detection"))


# Where to_lower is True in big_vision; in the others that compare answers it
# is False, by default or, in ai2d, by word.
WITHOUT_CASE = {
  *("chartqa", "docvqa", "infovqa", "ocrvqa", "rsvqa_hr", "rsvqa_lr", "stvqa"),
}


@pytest.mark.parametrize("task", FACTS)
def test_answers_are_compared_with_or_without_case(task):
  facts = FACTS[task]
  if facts.metric.split("(")[0] not in ("vqa", "chartqa", "rsvqa"):
    return
  metric = metrics.make(facts.metric)
  assert metric.lower == (task in WITHOUT_CASE)
  answer = {facts.key: ["Red Barn"] * 3} | {"question_type": "comp"}
  if task == "chartqa" or not isinstance(facts.example[facts.key], list):
    answer[facts.key] = "Red Barn"
  scores = metric(["red barn"], [answer], answer_key=facts.key)
  assert scores["acc"] == (task in WITHOUT_CASE)


@pytest.mark.parametrize("task", [t for t in FACTS if t not in STRIDES])
def test_tfds_splits(task):
  for final, expected in zip(("0", "1"), FACTS[task].train, strict=True):
    sources = of_tfds(task, final_split=final).train.sources.to_dict()
    found = {f"{s['name']}:{s['split']}" for s in sources.values()}
    assert expected in found
    assert len(found) == {"coco35l": 35, "chartqa": 2, "pope": 3}.get(task, 1)


def files_of(config):
  """The data set and {split: slice} of all that a config reads."""
  specs = [spec.source for spec in config.evals.values()]
  found = {}
  for source in (*config.train.sources.values(), *specs):
    path = pathlib.PurePath(source.path)
    assert source.kind in ("jsonl", "video_jsonl")
    assert path.suffix == ".jsonl"
    assert not source.ops, "fields have our names already"
    found.setdefault(str(path.parent), {})[path.stem] = source.slice
  ((folder, splits),) = found.items()
  assert folder.startswith("data/")
  return folder.removeprefix("data/"), splits


@pytest.mark.parametrize("task", [t for t in FACTS if t != "detection"])
def test_what_is_read_by_default_can_be_prepared(task):
  for final in ("0", "1"):
    name, splits = files_of(config_of(task, final_split=final))
    assert splits.keys() <= catalog.DATA_SETS[name].splits.keys()
    for split in splits:
      facts = catalog.DATA_SETS[name].splits[split]
      hidden = config_of(task).evals.get(split)
      assert not facts.hidden or hidden.metric is None


def test_parts_that_are_held_out_are_those_of_tfds():
  def sources(task, **arguments):
    config = config_of(task, **arguments)
    read = {k: v.slice for k, v in config.train.sources.items()}
    return read, config.evals.minival.source.slice

  assert sources("okvqa") == ({"train": "[:-10%]"}, "[-10%:]")
  assert sources("okvqa", final_split=1) == ({"train": None}, "[-10%:]")
  whole = {"train": None, "validation": "[:-10240]"}
  assert sources("vqav2") == (whole, "[-10240:]")
  assert sources("ocrvqa") == ({"train": None, "val": "[20000:]"}, "[:20000]")
  assert sources("cococap")[0] == {"train": "[:98%]", "restval": None}
  assert sources("cococap", final_split=1)[0] == {
    "train": None,
    "restval": None,
  }
  charts = config_of("chartqa", final_split=1).train.sources
  assert set(charts) == {
    f"{split}_{kind}"
    for split in ("train", "val")
    for kind in ("human", "augmented")
  }
  assert all(source.weight is None for source in charts.values())


@pytest.mark.parametrize(("task", "stride"), STRIDES.items())
def test_videos(task, stride):
  frames = FACTS[task].frames
  config = config_of(task)
  source = config.train.sources.train
  assert (source.kind, source.path, source.num_frames, source.weight) == (
    "video_jsonl",
    f"data/{task}/train.jsonl",
    None,
    None,
  )
  (first,) = config.train.augment
  assert (first.num_frames, first.stride, first.start) == (
    frames,
    stride,
    "random",
  )
  for spec in (config.evals.val, config.evals.pplx):
    assert spec.source.path == f"data/{task}/val.jsonl"
    assert spec.source.kind == "video_jsonl"
    assert (spec.source.num_frames, spec.source.stride) == (frames, stride)
    assert spec.source.short == "tile"
  with pytest.raises(ValueError, match="data=tfds: there is no TFDS builder"):
    config_of(task, data="tfds")


def test_arguments():
  config = config_of(
    "okvqa",
    tune="attention",
    data="my/folder",
    splits="val+other",
    final_split="true",
    init="a.npz",
    tokenizer="b.model",
  )
  assert config.trainable == tuning.METHODS["attention"].trainable
  assert config.weight_decay_mults == ()
  assert (config.init, config.tokenizer) == ("a.npz", "b.model")
  assert [(s.path, s.weight) for s in config.train.sources.values()] == [
    ("my/folder/train.jsonl", None),
    ("my/folder/val.jsonl", None),
  ]
  assert {n: s.source.path for n, s in config.evals.items()} == {
    "pplx": "my/folder/val.jsonl",
    "val": "my/folder/val.jsonl",
    "other": "my/folder/other.jsonl",
  }
  assert set(config_of("okvqa", splits="val").evals) == {"pplx", "val"}
  assert set(config_of("vqav2", splits="test").evals) == {"test"}
  assert config_of("vqav2").evals.test.every_steps == 0
  assert config_of("vqav2").evals.minival.every_percent == 0.25


@pytest.mark.parametrize(
  ("task", "arguments", "message"),
  [
    ("okvqa", {"tran": 1}, '"tran", expected one of: data,'),
    ("okvqa", {"splits": "vall"}, 'split "vall", .*minival, val. Did.*"val"'),
    ("okvqa", {"tune": "decodr"}, 'tune "decodr".*mean "decoder"'),
    ("cococap", {"crop": "r"}, 'crop "r", expected one of: ic, rc, rs'),
    ("science_qa", {"qfmt": "QC"}, 'prompt format of ScienceQA "QC"'),
  ],
)
def test_a_wrong_argument_is_named(task, arguments, message):
  with pytest.raises(ValueError, match=message) as caught:
    config_of(task, **arguments)
  assert "\n" not in str(caught.value)


@functools.cache
def tiny_tokenizer():
  return tokenizer_lib.Tokenizer(TOKENIZER)


def tiny(task, folder):
  """The config of a task on a folder of JSONL, small, and alike for all."""
  arguments = {
    "variant": "paligemma_tiny",
    "res": 28,
    "init": "",
    "tokenizer": TOKENIZER,
    "data": folder,
    "tune": "full",
  }
  if task == "refcoco_seg":
    arguments["mask_codec"] = CODEC
  if task == "detection":
    arguments["things"] = 3
  if task in STRIDES:
    arguments |= {"num_frames": 2, "stride": 2}
  config = config_of(task, **arguments)
  for name in ("total_epochs", "total_examples"):
    if name in config:
      del config[name]
  config.model.update(dtype="float32")
  config.model.img.remat_policy = config.model.llm.remat_policy = "none"
  config.model.img.update(width=12, depth=1, mlp_dim=20, num_heads=2)
  config.model.llm.update(
    width=16, depth=1, mlp_dim=22, num_heads=2, head_dim=10, dropout=0.0
  )
  config.frozen_dtype = "float32"
  config.update(batch_size=8, text_len=64, learning_rate=1e-3)
  config.update(label_smoothing=0.0, weight_decay=1e-4)
  for spec in config.evals.values():
    spec.update(batch_size=8)
    if spec.kind == "generate":
      spec.update(max_decode_len=3, sampler="greedy")
  return config


def let_train(config):
  """Gives POPE, which trains nothing, what the others train with."""
  if not config.trainable:
    config.update(optimizer="adam", optimizer_args={"b2": 0.999})
    config.trainable, config.learning_rate = (".*",), 1e-3


@pytest.fixture(scope="module")
def compiled():
  """Of a plan: its step, compiled once for all frames alike, and a state."""
  found = {}

  def of(plan):
    frames = plan.config.frames
    if frames not in found:
      rng = np.random.default_rng(1)
      params = {
        name: jax.numpy.asarray(rng.normal(0, 0.2, leaf.shape), "float32")
        for name, leaf in plan.trainable.items()
      }
      start = state.create_state(plan.optimizer, params, plan.state)
      found[frames] = plan.compile_step(), jax.device_get(start)
    step, start = found[frames]
    places = jax.tree.map(lambda leaf: leaf.sharding, plan.state)
    return step, jax.device_put(start, places)

  return of


def one_device_plan(config):
  return Plan(config, devices=jax.devices()[:1])


@pytest.mark.parametrize("task", FACTS)
def test_two_steps_and_a_metric(task, write, compiled, tmp_path):
  config = tiny(task, write(FACTS[task].example))
  let_train(config)
  config.total_steps = 2
  plan = one_device_plan(config)
  assert plan.config.frames == (2 if FACTS[task].frames else 0)
  step, now = compiled(plan)
  batches = inputs.train_batches(config, plan.sources, tiny_tokenizer())
  feed = inputs.Feed(batches, plan.step_arguments()[-1])
  for _ in range(2):
    batch, counts = next(feed)
    assert counts == {"skipped": 0, "truncated": 0}
    now, measured = step(now, {}, batch)
    assert np.isfinite(float(measured["loss"]))
    assert float(measured["num_tokens"]) > 0
  feed.close()
  with jax.numpy_rank_promotion("allow"):
    scores = {
      evaluator.name: evaluator.run(
        plan.model,
        tree.unflatten(now.trainable),
        plan.mesh,
        output_dir=tmp_path,
      )
      for evaluator, _ in inputs.make_evaluators(
        config, tiny_tokenizer(), **plan.sizes
      )
    }
  assert scores["val"]["num_examples"] == 3
  assert len(scores["val"]) > 1  # what the metric gives
  lines = (tmp_path / "val/predictions.jsonl").read_text().splitlines()
  assert len(lines) == 3
  assert all(np.isfinite(value) for value in scores["val"].values())
  if "pplx" in scores:
    assert scores["pplx"]["num_tokens"] > 3


def written(config, example, ops, epoch=0):
  example = {**example, "_where": "x:1", "_index": 0, "_epoch": epoch}
  rng = np.random.default_rng(0)
  for op in ops:
    example = op(example, rng)
  return example


def train_ops(config):
  first, *_ = config.train.sources.values()
  return (*first.ops, *config.train.augment, *config.train.ops)


@pytest.mark.parametrize("task", FACTS)
def test_texts(task, write, picture):
  """Of JSONL and of TFDS alike, for the model and for the metric."""
  facts = FACTS[task]
  config = tiny(task, write(facts.example))
  source, _ = inputs.make_sources(config)[0]
  made = written(config, source[0], train_ops(config))
  assert made["prefix"] == facts.prefix
  if task == "refcoco_seg":
    assert re.fullmatch(
      re.escape(facts.suffix) + r"(<seg[0-9]{3}>){16}", made["suffix"]
    )
  elif task == "detection":
    assert made["suffix"].startswith(facts.suffix + " ; <loc")
    assert made["suffix"].count("noise") == 2
    (start, stop), _ = made["unsupervised"]
    assert re.fullmatch("(<loc[0-9]{4}>){4}", made["suffix"][start:stop])
  else:
    assert made["suffix"] == facts.suffix

  spec = config.evals.val
  (evaluator,) = [
    e
    for e, _ in inputs.make_evaluators(config, tiny_tokenizer(), **SIZES)
    if e.name == "val"
  ]
  asked = written(config, evaluator.source[0], spec.ops)
  assert asked["prefix"] == facts.prefix
  assert spec.answer_key in asked or task == "refcoco_seg"
  if task not in ("science_qa", "refcoco_seg"):
    assert "suffix" not in asked

  if task in STRIDES or task == "refcoco_seg":
    return
  config = of_tfds(task, res=28)
  fields = {**facts.example, "image": picture, **(facts.tfds or {})}
  renamed = facts.tfds or {}
  if task == "nlvr2":
    fields["image_right"] = picture
  if task == "detection":
    height, width = 31, 43
    box = np.array(transfer_facts.BOX) / [height, width, height, width]
    fields["objects"] = {"bbox": [box.astype(np.float32)], "label": [15]}
  assert renamed.keys() <= fields.keys()
  fields = {k: v for k, v in fields.items() if v is not None}
  named = written(config, fields, train_ops(config))
  assert named["prefix"] == made["prefix"]
  if task == "detection":
    assert named["suffix"].startswith(facts.suffix + " ; <loc")
  else:
    assert named["suffix"] == made["suffix"]


SIZES = {"batch_size": 8, "examples_per_epoch": 8, "total_steps": 2}


@pytest.mark.parametrize("task", ["okvqa", "msvd_qa"])
def test_a_final_run_sees_every_example_of_a_folder_equally_often(task, write):
  """Eight to train on and three held out: an epoch has eleven, each once."""
  folder = write(FACTS[task].example)
  config = config_of(task, data=folder, final_split="true")
  sources = inputs.make_sources(config)
  assert [weight for _, weight in sources] == [8, 3]
  assert inputs.examples_per_epoch(sources) == 11
  assert all(
    "weight" not in spec.source.to_dict() for spec in config.evals.values()
  )


def test_pope_only_evaluates(write):
  config = tiny("pope", write(FACTS["pope"].example))
  config.weight_decay = 0.0
  assert config.trainable == ()
  plan = one_device_plan(config)
  assert plan.total_steps == 0
  assert not plan.trainable
  assert plan.frozen
  (evaluator, every), *_ = inputs.make_evaluators(
    config, tiny_tokenizer(), **plan.sizes
  )
  assert (evaluator.name, every) == ("val", 0)


def test_masks_are_scored_with_the_codec(write):
  """The true codes, as the model would write them, overlap with the mask."""
  facts = FACTS["refcoco_seg"]
  config = tiny("refcoco_seg", write(facts.example))
  (evaluator,) = [
    e
    for e, _ in inputs.make_evaluators(config, tiny_tokenizer(), **SIZES)
    if e.name == "val"
  ]
  examples = [written(config, evaluator.source[0], config.evals.val.ops)]
  scores = evaluator.metric([examples[0]["suffix"]], examples)
  assert scores["boxacc/0.75"] == 1
  assert scores["invalid"] == 0
  assert 0 <= scores["miou"] <= 1


def test_what_decays(write):
  """Kernels of the image tower and its head; of the decoder, nothing."""
  config = tiny("okvqa", write(FACTS["okvqa"].example))
  config.update(total_steps=2, weight_decay=0.5, learning_rate=0.0)
  config.schedule = ((".*", {"decay": "constant"}),)
  plan = one_device_plan(config)
  assert decayed(plan) == {
    name
    for name in plan.trainable
    if name.startswith("img/") and name.endswith("/kernel")
  }
  assert "img/head/kernel" in decayed(plan)
  config.weight_decay_mults = None
  assert "llm/embedder/input_embedding" in decayed(one_device_plan(config))


def decayed(plan):
  """Names of the parameters that an update without gradient moves."""
  ones = {name: np.ones(1, np.float32) for name in plan.trainable}
  zeros = {name: np.zeros(1, np.float32) for name in ones}
  start = plan.optimizer.init(ones)
  updates, _ = plan.optimizer.update(zeros, start, ones)
  return {name for name, update in updates.items() if update[0]}


def test_what_an_evaluator_has_of_its_own(write):
  config = tiny("okvqa", write(FACTS["okvqa"].example))
  config.evals.pplx.update(text_len=31, resize="hf", too_long="error")
  found = {
    evaluator.name: evaluator.preprocess
    for evaluator, _ in inputs.make_evaluators(
      config, tiny_tokenizer(), **SIZES
    )
  }
  own = found["pplx"]
  assert (own.text_len, own.resize, own.too_long) == (31, "hf", "error")
  assert (found["val"].text_len, found["val"].resize) == (
    64,
    "reference_uint8",
  )
  assert found["val"].too_long == "truncate"
  assert config.text_len == 64


def test_frames_of_a_batch(write):
  config = tiny("nlvr2", write(FACTS["nlvr2"].example))
  config.total_steps = 1
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  batch = inputs.abstract_batch(config, mesh)
  assert batch["image"].shape == (8, 2, 28, 28, 3)
  model = paligemma_model.make(**config.model.to_dict())
  assert tasks.of(config).make_tokenizer(config, model).vocab_size == 1792
