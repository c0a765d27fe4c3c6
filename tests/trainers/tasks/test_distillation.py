"""Self-distillation and masked prediction: their numbers, and their teacher."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma import init, tree
from paligemma.models import siglip
from paligemma.training import distillation, sharding
from tests.trainers.tasks import test_contrastive as pairs_alone
from tests.trainers.tasks import test_decoder_loss as decoder
from trainers import tasks, train
from trainers.plan import Plan
from trainers.state import TrainState
from trainers.step import make_step
from trainers.tasks import contrastive

BATCH, RES, PATCH, DECAY = 8, 28, 14, 0.75
HEADS = {"hidden": 6, "features": 5, "prototypes": 7}
REAL = np.arange(BATCH) != 3


@pytest.fixture(scope="module")
def model():
  txt = {**pairs_alone.TINY, "text_len": 5, "vocab_size": 31, "num_classes": 12}
  return siglip.make(
    "siglip_tiny", img=pairs_alone.TINY, txt=txt, distill=HEADS
  )


def draw(model, seed):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(0.5 * (len(x.shape) == 1), 0.3, x.shape).astype("f4")
    for name, x in init.shapes(model, RES).items()
  }


@pytest.fixture(scope="module")
def params(model):
  """Of the student and of the teacher."""
  return draw(model, 1), draw(model, 2)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(2)
  return {
    "image": rng.uniform(-1, 1, (BATCH, RES, RES, 3)).astype(np.float32),
    "text": rng.integers(2, 31, (BATCH, 5)).astype(np.int32),
    "_mask": REAL,
  }


def run(model, params, batch, *, step=5, devices=1, microbatches=1):
  """State and measurements after a step of SGD at rate 1, taught from 5 on."""
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  loss = contrastive.make_loss(
    model, distill_weight=0.5, num_microbatches=microbatches
  )
  optimizer = optax.sgd(1.0)
  program = make_step(loss, optimizer, seed=0, ema_decay=DECAY, teach_from=5)
  shardings = sharding.infer(params[0], mesh)
  student, teacher = (
    {n: jax.device_put(x, shardings[n]) for n, x in of.items()} for of in params
  )
  state = TrainState(jnp.int32(step), student, optimizer.init(student), teacher)
  with jax.set_mesh(mesh):
    return jax.jit(program)(state, {}, sharding.put_batch(batch, mesh))


def numpy_losses(model, params, batch):
  """Both means by the definition, and the mean cosines of the teacher."""
  rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 5), 3)
  drawn = distillation.draw(rng, BATCH, (RES // PATCH) ** 2)
  image = jnp.asarray(batch["image"])

  def view(at, size):
    names = "box", "flip", "colour"
    return distillation.crop(image, *(drawn[x][:, at] for x in names), size)

  def features(of, pixels, **options):
    own = tree.unflatten(of)["img"]
    if pixels.shape[1] != RES:  # one patch of the four: the mean of all
      own = {
        **own,
        "pos_embedding": own["pos_embedding"].mean(1, keepdims=True),
      }
    pooled, out = model.img.apply({"params": own}, pixels, **options)
    return np.asarray(pooled), np.asarray(out["encoded"])

  def cosines(of, x, head):
    of = tree.under(f"distill/{head}/", of)
    for i in range(2):
      x = x @ of[f"hidden_{i}"]
      x = x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    x = x @ of["features"]
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x @ (of["prototypes"] / np.linalg.norm(of["prototypes"], axis=0))

  def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)

  def loss(student, teacher, center):
    wanted = softmax((teacher - center) / 0.04)
    return -(wanted * np.log(softmax(student / 0.1))).sum(-1)

  student, teacher = params
  center = teacher["distill/centers"]
  pooled, patches = features(teacher, view(slice(1), RES))
  pooled, patches = (
    cosines(teacher, x, head)
    for x, head in ((pooled, "pooled"), (patches, "patches"))
  )
  local, _ = features(student, view(slice(1, None), PATCH))
  local = cosines(student, local, "pooled").reshape(BATCH, 8, -1)
  of_local = loss(local, pooled[:, None], center[0]).mean(axis=1)
  hidden = np.asarray(drawn["hidden"])
  assert (hidden.sum(axis=1) == 2).all()
  token = jnp.asarray(student["distill/mask_token"])
  _, found = features(
    student, view(slice(1), RES), masked=(drawn["hidden"], token)
  )
  of_patches = loss(cosines(student, found, "patches"), patches, center[1])
  of_masked = (of_patches * hidden).sum(axis=1) / 2
  means = np.stack([pooled, patches.mean(axis=1)])[:, REAL].mean(axis=1)
  return of_local[REAL].mean(), of_masked[REAL].mean(), means


def test_losses_and_centers_are_those_of_numpy(model, params, batch):
  state, measured = run(model, params, batch)
  local, masked, means = numpy_losses(model, params, batch)
  np.testing.assert_allclose(measured["distill_loss"], local, rtol=1e-5)
  np.testing.assert_allclose(measured["masked_loss"], masked, rtol=1e-5)
  expected = measured["contrastive_loss"] + 0.5 * (local + 0.25 * masked)
  np.testing.assert_allclose(measured["loss"], expected, rtol=1e-5)
  old = params[1]["distill/centers"]
  np.testing.assert_allclose(
    state.ema["distill/centers"],
    DECAY * old + (1 - DECAY) * means,
    rtol=0,
    atol=1e-6,
  )


def test_the_teacher_is_the_average_of_the_student(model, params, batch):
  state, _ = run(model, params, batch)
  for name, student in state.trainable.items():
    if name != "distill/centers":
      expected = DECAY * params[1][name] + (1 - DECAY) * student
      np.testing.assert_allclose(
        state.ema[name], expected, rtol=0, atol=1e-6, err_msg=name
      )
  # Another teacher is another loss, and none of its weights has a gradient.
  centers = params[0]["distill/centers"]
  np.testing.assert_array_equal(state.trainable["distill/centers"], centers)
  _, one = run(model, params, batch)
  _, other = run(model, (params[0], draw(model, 3)), batch)
  assert one["contrastive_loss"] == other["contrastive_loss"]
  assert one["distill_loss"] != other["distill_loss"]


def test_before_it_begins_there_is_neither_loss_nor_teacher(
  model, params, batch
):
  state, measured = run(model, params, batch, step=4)
  assert measured["distill_loss"] == measured["masked_loss"] == 0
  assert measured["loss"] == measured["contrastive_loss"]
  for name, student in state.trainable.items():
    is_head = name.startswith("distill/")
    if is_head:
      np.testing.assert_array_equal(student, params[0][name], err_msg=name)
    if name != "distill/centers":
      np.testing.assert_allclose(state.ema[name], student, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("devices", "microbatches"), [(2, 1), (1, 2)])
def test_devices_and_microbatches_change_nothing(
  model, params, batch, devices, microbatches
):
  expected, before = run(model, params, batch)
  state, measured = run(
    model, params, batch, devices=devices, microbatches=microbatches
  )
  np.testing.assert_allclose(measured["loss"], before["loss"], rtol=1e-6)
  for name, x in expected.trainable.items():
    for found, wanted in (
      (state.trainable[name], x),
      (state.ema[name], expected.ema[name]),
    ):
      np.testing.assert_allclose(
        found, wanted, rtol=1e-6, atol=1e-5, err_msg=name
      )


def test_views_show_what_their_boxes_say():
  ramp = jnp.linspace(-0.95, 0.95, 20)
  image = jnp.broadcast_to(ramp[None, :, None, None], (1, 20, 20, 3))
  box = jnp.array([[[0.5, 0, 0.5, 1], [0, 0.25, 1, 0.5]]])
  colour = jnp.array([[[0.0, 1, 1], [0.1, 1, 1]]])
  flip = jnp.array([[False, True]])
  views = distillation.crop(image, box, flip, colour, 10)
  lower, middle = views[:, :, :, 0]
  np.testing.assert_allclose(lower[:, 4], ramp[10:], atol=0.02)
  np.testing.assert_allclose(middle[4], ramp[::2] * 0 + middle[4, 0], atol=1e-6)
  drawn = distillation.draw(jax.random.key(0), 50, 16)
  area = np.prod(drawn["box"][..., 2:], axis=-1)
  assert area[:, 0].min() > 0.35 and 0.9 < area[:, 0].max() <= 1
  assert area[:, 1:].min() > 0.049 and area[:, 1:].max() < 0.401
  ends = drawn["box"][..., :2] + drawn["box"][..., 2:]
  assert drawn["box"].min() >= 0 and ends.max() <= 1 + 1e-6
  assert (drawn["hidden"].sum(axis=1) == 8).all()
  assert distillation.local_size(224, 16) == 96
  assert distillation.local_size(28, 14) == 14


def config_of(folder, **values):
  config = decoder.config_of(folder, decoder_weight=0.0)
  config.model.distill = HEADS
  config.update(distill_weight=0.25, ema_decay=0.9, distill_after=0.5)
  config.update(values)
  return config


def test_a_run_resumes_with_its_teacher(tmp_path):
  decoder.make_shapes(tmp_path / "shapes", num=13, num_val=3)
  config = config_of(tmp_path, total_steps=4, checkpoint_steps=2, log_steps=1)
  config.keep_checkpoints = None
  assert train.train(config, tmp_path / "whole")
  plan = Plan(config)
  assert plan.task.teach_from(config, 4) == 2
  # The first half of the run, to go on from.
  (tmp_path / "half/checkpoints").mkdir(parents=True)
  for name in ("config.json", "checkpoints/2"):
    source = tmp_path / "whole" / name
    if source.exists():
      source.rename(tmp_path / "half" / name)
  assert train.train(config, tmp_path / "half")
  whole, half = (
    (tmp_path / name / "final.npz").read_bytes() for name in ("whole", "half")
  )
  assert whole == half
  lines = (tmp_path / "half/metrics.jsonl").read_text().splitlines()
  measured = [x for x in map(json.loads, lines) if "loss" in x]
  assert [x["step"] for x in measured] == [3, 4]
  assert all(x["distill_loss"] > 0 < x["masked_loss"] for x in measured)


def test_configs_that_cannot_be_distilled_end_in_one_line(tmp_path):
  make = tasks.TASKS["contrastive"].make_model
  for values, message in (
    ({"ema_decay": None}, r"^distill_weight is set, but ema_decay is None"),
    ({"distill_after": 2.0}, r"^distill_weight is 0.25 and distill_after 2.0"),
    ({"trainable": ("img/.*",)}, r'^distill_weight is set.*add "distill/\.\*"'),
  ):
    with pytest.raises(ValueError, match=message):
      make(config_of(tmp_path, **values))
  naflex = config_of(tmp_path)
  naflex.model.variant = "siglip2_b16_naflex"
  with pytest.raises(ValueError, match="views need an image tower of one res"):
    make(naflex)
