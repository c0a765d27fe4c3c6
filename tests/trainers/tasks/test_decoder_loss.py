"""The loss of the decoder in a step of a SigLIP, and in a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from configs import common
from paligemma import init, tree
from paligemma.checkpoints import formats, npz
from paligemma.models import siglip
from paligemma.training import sharding
from scripts.make_shapes import make_shapes
from tests.models.test_text_decoder import numpy_logits
from tests.trainers.tasks import test_contrastive as pairs_alone
from tests.trainers.tasks import test_siglip_run as runs
from trainers import evaluation, tasks, train
from trainers.tasks import contrastive

BATCH, RES, LENGTH, VOCABULARY = 8, 28, 5, 31
TXT = {**pairs_alone.TINY, "depth": 4}
TXT |= {"text_len": LENGTH, "vocab_size": VOCABULARY, "num_classes": 12}
REAL = np.arange(BATCH) != 3


@pytest.fixture(scope="module")
def model():
  return siglip.make("siglip_tiny", img=pairs_alone.TINY, txt=TXT, dec={})


@pytest.fixture(scope="module")
def params(model):
  rng = np.random.default_rng(1)
  return {
    name: rng.normal(0.5 * (len(x.shape) == 1), 0.3, x.shape).astype("f4")
    for name, x in init.shapes(model, RES).items()
  }


@pytest.fixture(scope="module")
def batch():
  """Captions end with eos, 1, after one to five tokens; some have regions."""
  rng = np.random.default_rng(2)
  text = rng.integers(2, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
  for row, end in enumerate(rng.integers(1, LENGTH, BATCH)):
    text[row, end:] = 1
  learned = rng.integers(0, 2, (BATCH, 2, LENGTH)).astype(np.int32)
  learned[5:] = 0
  return {
    "image": rng.uniform(-1, 1, (BATCH, RES, RES, 3)).astype(np.float32),
    "text": text,
    "regions": rng.integers(0, VOCABULARY, learned.shape).astype(np.int32),
    "regions_loss": learned,
    "_mask": REAL,
  }


def measure(model, params, batch, devices=1, **options):
  """Loss with its measurements, and gradients."""
  loss = contrastive.make_loss(model, **options)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])

  def of_params(params, batch):
    return loss(tree.unflatten(params), batch, jax.random.key(0))

  shardings = sharding.infer(params, mesh)
  params = {n: jax.device_put(x, shardings[n]) for n, x in params.items()}
  with jax.set_mesh(mesh):
    return jax.jit(jax.value_and_grad(of_params, has_aux=True))(
      params, sharding.put_batch(batch, mesh)
    )


def numpy_loss(model, params, batch, parallel):
  """The mean over the real images of the mean losses of their texts."""
  nested = {"params": tree.unflatten(params)}
  _, _, out = model.apply(nested, batch["image"], None)
  text = np.concatenate([batch["text"][:, None], batch["regions"]], axis=1)
  decoder = tree.under("dec/", params)
  logits = numpy_logits(
    decoder, np.asarray(out["img/encoded"]), text, np.full(BATCH, parallel)
  )
  total = 0.0
  for image, kind in np.ndindex(text.shape[:2]):
    learned = batch["regions_loss"][image, kind - 1] == 1
    if kind == 0:
      learned = np.arange(LENGTH) <= list(text[image, 0]).index(1)
    if not (REAL[image] and learned.any()):
      continue
    row = logits[image, kind]
    losses = np.log(np.exp(row).sum(axis=-1))
    losses -= row[np.arange(LENGTH), text[image, kind]]
    total += losses[learned].mean()
  return total / REAL.sum()


@pytest.mark.parametrize("parallel", [0.0, 1.0])
def test_it_is_that_of_numpy_beside_that_of_the_pairs(
  model, params, batch, parallel
):
  options = {"decoder_weight": 0.7, "decoder_parallel": parallel}
  (total, measured), _ = measure(model, params, batch, **options)
  expected = numpy_loss(model, params, batch, parallel == 1)
  np.testing.assert_allclose(measured["decoder_loss"], expected, rtol=1e-5)
  alone = model.clone(dec=None)
  own = {n: x for n, x in params.items() if not n.startswith("dec/")}
  (of_pairs, _), _ = measure(alone, own, batch)
  assert measured["contrastive_loss"] == of_pairs / REAL.sum()
  np.testing.assert_allclose(
    total / REAL.sum(), of_pairs / REAL.sum() + 0.7 * expected, rtol=1e-5
  )


@pytest.mark.parametrize(("devices", "microbatches"), [(2, 1), (1, 2)])
def test_devices_and_microbatches_change_nothing(
  model, params, batch, devices, microbatches
):
  options = {"decoder_weight": 1.0, "decoder_parallel": 0.5}
  (total, _), expected = measure(model, params, batch, **options)
  (found, _), grads = measure(
    model,
    params,
    batch,
    devices=devices,
    num_microbatches=microbatches,
    **options,
  )
  np.testing.assert_allclose(found, total, rtol=1e-6)
  for name, grad in expected.items():
    np.testing.assert_allclose(
      grads[name], grad, rtol=1e-6, atol=1e-5, err_msg=name
    )


def test_it_teaches_the_image_tower_and_only_that(model, params, batch):
  batch = jax.tree.map(jnp.asarray, batch)

  def loss(params):
    loss = contrastive.make_loss(model, decoder_weight=1.0)
    params = tree.unflatten(params)
    return loss(params, batch, jax.random.key(0))[1]["decoder_loss"]

  grads = jax.jit(jax.grad(loss))(params)
  for name, grad in grads.items():
    reaches = name.startswith(("img/", "dec/")) and "MAPHead" not in name
    assert (np.abs(grad).max() > 0) == reaches, name


def config_of(folder, **values):
  config = common.defaults("contrastive")
  config.model.update(variant="siglip_tiny", dtype="float32", img=runs.TINY)
  config.model.txt = {**runs.TXT, "text_len": 24}
  config.tokenizer = str(runs.TOKENIZER)
  path = str(folder / "shapes/train.jsonl")
  config.train.sources.main = {"kind": "jsonl", "path": path}
  config.update(
    res=28,
    batch_size=8,
    total_steps=2,
    optimizer="adam",
    learning_rate=0.01,
    trainable=(".*",),
    decoder_weight=1.0,
    writers=(),
  )
  config.update(values)
  return config


def test_a_config_that_leaves_the_decoder_as_drawn_or_has_no_weight(tmp_path):
  task = tasks.TASKS["contrastive"]
  with pytest.raises(ValueError, match=r'^decoder_weight is set, .*"dec/\.\*"'):
    task.make_model(config_of(tmp_path, trainable=("img/.*",)))
  for wrong in ({"decoder_weight": -1.0}, {"decoder_parallel": 1.5}):
    with pytest.raises(ValueError, match=r"^decoder_weight is .* share in"):
      task.make_model(config_of(tmp_path, **wrong))
  without = config_of(tmp_path, decoder_weight=0.0)
  assert task.make_model(without).dec is None
  assert task.batch_shapes(without).keys() == {"image", "text", "_mask"}


def test_a_run_keeps_the_decoder_others_leave_it_out(tmp_path, capsys):
  make_shapes(tmp_path / "shapes", num=13, num_val=3)
  path = tmp_path / "shapes/train.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  del lines[2]["objects"]  # that one is only captioned
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

  assert train.train(config_of(tmp_path), tmp_path / "run")
  final = npz.load(tmp_path / "run/final.npz")
  is_decoder = {name: name.startswith("dec/") for name in final}
  measured = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  assert "decoder_loss" in "".join(measured)

  for of in ("run", "run/final.npz"):
    checkpoint = formats.open(tmp_path / of)
    assert "dec/head/... (2)" in checkpoint.describe()
    _, params = paligemma.load(tmp_path / of)
    assert tree.flatten(params).keys() == {
      name for name in final if not is_decoder[name]
    }
  _, _, params = evaluation.load(config_of(tmp_path), str(tmp_path / "run"))
  assert "dec" not in params

  # Goes on with the decoder, or with another beside the towers of a file.
  again = config_of(tmp_path, init=str(tmp_path / "run/final.npz"))
  again.learning_rate = 1e-9
  assert train.train(again, tmp_path / "again")
  found = npz.load(tmp_path / "again/final.npz")
  for name, before in final.items():
    np.testing.assert_allclose(found[name], before, atol=1e-6, err_msg=name)
  towers = {name: x for name, x in final.items() if not is_decoder[name]}
  npz.save(tmp_path / "towers.npz", towers)
  again.init = str(tmp_path / "towers.npz")
  assert train.train(again, tmp_path / "other")
  note = 'note: nothing under "dec/" in the files, so it is drawn'
  out, err = capsys.readouterr()
  assert (out + err).count(note) == 1


def test_a_region_that_cannot_be_used_ends_in_one_line(main, tmp_path):
  make_shapes(tmp_path / "shapes", num=13, num_val=3)
  path = tmp_path / "shapes/train.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[4]["objects"][0]["box"] = [3, 2, 1]
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  line = main(config_of(tmp_path), tmp_path / "run")
  assert f'{path}:5: object 0 of "objects" is' in line
  assert "expected (y0, x0, y1, x1) in pixels" in line
  assert not (tmp_path / "run").exists()
