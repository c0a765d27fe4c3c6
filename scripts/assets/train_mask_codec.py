"""Trains a small mask codec on scans of handwritten digits.

    python -m scripts.assets.train_mask_codec \
      paligemma/assets/tiny_mask_codec.npz

It has the layers of the published one, which is not ours to ship, but is
narrower, and knows nothing but digits: 64x64 mask <-> 16 codes of 128.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma.checkpoints import npz
from paligemma.data import masks as masks_lib
from paligemma.models import mask_codec
from scripts import make_digits, make_scenes
from trainers import command_line

# Channels behind each layer that changes their number; in the published file
# (16, 32, 64, 128), 512 and (128, 128, 64, 32, 16).
DOWN, CODE, UP = (8, 16, 32, 32), 16, (32, 32, 16, 8, 4)
CODES = 128

NUM_MASKS, NUM_TEST_MASKS = 8000, 1000
BATCH_SIZE = 64
LEARNING_RATE = 2e-3
# Share of the steps without codes, until latents mean something.
WARMUP = 0.2
ROUNDS = 10  # of k-means, which then finds the first codebook
COMMITMENT = 0.25


def draw_masks(
  scans: np.ndarray, number: int, rng: np.random.Generator
) -> np.ndarray:
  """Crops the masks of digits in scenes: float32[number, 64, 64] in [0, 1]."""
  drawn = []
  for scan in scans[rng.integers(len(scans), size=number)]:
    low, high = make_scenes.HEIGHTS[rng.integers(len(make_scenes.HEIGHTS))]
    obj = make_scenes.place(scan, "", int(rng.integers(low, high)), [], rng)
    drawn.append(masks_lib.crop(obj.mask, obj.box))
  return np.stack(drawn)


def random_codec(rng: np.random.Generator) -> mask_codec.Params:
  """Draws parameters that keep the variance of what passes through a layer."""
  blocks = [("net.0", 3), ("net.2", 3), ("net.4", 1)]
  layers = [
    *((f"encoder.{2 * i}", 4, width) for i, width in enumerate(DOWN)),
    *((f"encoder.{i}.{net}", k, DOWN[-1]) for i in (8, 9) for net, k in blocks),
    ("encoder.10", 1, CODE),
    ("decoder.0", 1, UP[0]),
    *((f"decoder.{i}.{net}", k, UP[0]) for i in (2, 3) for net, k in blocks),
    *((f"decoder.{4 + 2 * i}", 4, width) for i, width in enumerate(UP[1:])),
    ("decoder.12", 1, 1),
  ]
  arrays = {mask_codec.CODEBOOK: np.zeros((CODES, CODE), np.float32)}
  inputs = 1
  for layer, side, outputs in layers:
    axes = outputs, inputs
    reads = inputs * side**2
    if side == 4 and layer.startswith("decoder"):  # transposed, of stride 2
      axes, reads = axes[::-1], reads // 4
    weight = rng.normal(0, (2 / reads) ** 0.5, (*axes, side, side))
    arrays[f"{layer}.weight"] = weight.astype(np.float32)
    arrays[f"{layer}.bias"] = np.zeros(outputs, np.float32)
    inputs = outputs
  return mask_codec.from_arrays(arrays)


def k_means(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns CODES centres float32[CODES, D] of float32[N, D]."""
  centres = x[rng.choice(len(x), CODES, replace=False)]
  for _ in range(ROUNDS):
    distances = (centres**2).sum(-1) - 2 * x @ centres.T
    nearest = distances.argmin(-1)
    for code in np.unique(nearest):
      centres[code] = x[nearest == code].mean(0)
  return centres


def _reconstruction_loss(params, masks):
  """Mean squared error of decoded latents, which are not replaced by codes."""
  latents = mask_codec.to_latents(params, masks)
  decoded = mask_codec.from_latents(params, latents)
  return jnp.mean((decoded - (2 * masks - 1)) ** 2)


def codec_loss(params: mask_codec.Params, masks: jax.Array) -> jax.Array:
  """Reconstruction through the codes, with codebook and commitment loss.

  Source: van den Oord et al. 2017, "Neural Discrete Representation Learning",
  equation 3; gradients pass from the decoder to the encoder as if there were no
  codes in between.
  """
  stop = jax.lax.stop_gradient
  latents = mask_codec.to_latents(params, masks)
  codes = mask_codec.encode(params, masks)
  entries = params[mask_codec.CODEBOOK][codes].reshape(latents.shape)
  passed = latents + stop(entries - latents)
  decoded = mask_codec.from_latents(params, passed)
  return (
    jnp.mean((decoded - (2 * masks - 1)) ** 2)
    + jnp.mean((entries - stop(latents)) ** 2)
    + COMMITMENT * jnp.mean((stop(entries) - latents) ** 2)
  )


def _train_codec(masks, steps, seed):
  """Trains on masks float32[N, 64, 64], by Adam."""
  rng = np.random.default_rng(seed)
  params = random_codec(rng)
  optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
  state = optimizer.init(params)

  @functools.partial(jax.jit, static_argnums=0)
  def step(loss, params, state, batch):
    gradient = jax.grad(loss)(params, batch)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  warmup = round(WARMUP * steps)
  for i in range(steps):
    batch = masks[rng.choice(len(masks), BATCH_SIZE, replace=False)]
    if i == warmup:
      latents = mask_codec.to_latents(params, masks[:1000])
      found = k_means(np.asarray(latents).reshape(-1, CODE), rng)
      params = params | {mask_codec.CODEBOOK: jnp.asarray(found)}
    loss = _reconstruction_loss if i < warmup else codec_loss
    params, state = step(loss, params, state, batch)
  return params


def _mean_iou(params, masks):
  """Mean IoU of masks[N, 64, 64] with those decoded from their codes."""
  decoded = mask_codec.decode(params, mask_codec.encode(params, masks))
  inside, truth = np.asarray(decoded) > 0, masks > 0.5
  common = (inside & truth).sum((1, 2))
  return float((common / (inside | truth).sum((1, 2))).mean())


def train_mask_codec(
  out: str | os.PathLike, *, steps: int, seed: int
) -> tuple[float, int]:
  """Trains on the scans of make_digits.py that are for training.

  The file is float16 under the names of the published one. Returns the mean IoU
  of masks of test scans with what comes back from their codes, and how many
  codes these use.
  """
  scans, _ = make_digits.load_scans()
  rng = np.random.default_rng(seed)
  train, test = np.split(scans, [-make_digits.NUM_TEST])
  params = _train_codec(draw_masks(train, NUM_MASKS, rng), steps, seed)
  npz.save(out, mask_codec.to_arrays(params), dtype="float16")
  params = mask_codec.from_arrays(npz.load(out))
  masks = draw_masks(test, NUM_TEST_MASKS, rng)
  used = len(np.unique(mask_codec.encode(params, masks)))
  return _mean_iou(params, masks), used


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the npz file to write")
  parser.add_argument("--steps", type=int, default=3000)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  iou, used = train_mask_codec(**vars(options))
  print(
    f"mask codec: {options.out} written, mean IoU {iou:.3f} on masks of test"
    f" scans, {used} of {CODES} codes in use"
  )


if __name__ == "__main__":
  command_line.run(main)
