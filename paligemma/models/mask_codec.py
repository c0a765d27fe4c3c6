"""The segmentation mask codec: a 64x64 mask <-> 16 codes of a codebook of 128.

A VQ-VAE with the layers of "All in Tokens" (arXiv:2301.02229), trained on
OpenImages and used by PaLI-3 and PaliGemma, which writes a code as <seg042>.
The parameters keep the names of the published file, vae-oid.npz:

    encoder.0 .2 .4 .6    4x4 convolutions of stride 2, from 64x64 to 4x4
    encoder.8 .9          residual blocks of 3x3, 3x3 and 1x1
    encoder.10            1x1, to the width of the codebook
    _vq_vae._embedding    the codebook
    decoder.0             1x1, from the width of the codebook
    decoder.2 .3          residual blocks
    decoder.4 .6 .8 .10   4x4 transposed convolutions, from 4x4 to 64x64
    decoder.12            1x1, to one channel

Axes: B batch, H and W rows and columns, T codes of a mask (16, the 4x4 grid row
by row), D width of the codebook, C its number of codes.
"""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from paligemma import registry, tree, variants

SIDE = 64  # pixels of a mask
GRID = 4  # codes along a side of it

Params = dict[str, jax.Array]
Masks = Bool[ArrayLike, "B 64 64"] | Float[ArrayLike, "B 64 64"]

CODEBOOK = variants.CODEBOOK
# Moving averages of the codebook, needed only to continue its training.
_IGNORED = ("_vq_vae._ema_cluster_size", "_vq_vae._ema_w")

_DOWN = [x for x, kind in variants.MASK_CODEC.items() if kind == "down"]
_UP = [x for x, kind in variants.MASK_CODEC.items() if kind == "up"]


def from_arrays(
  flat: Mapping[str, np.ndarray], where: str | os.PathLike = "mask codec"
) -> Params:
  """Returns parameters of the arrays of vae-oid.npz, all of which are needed.

  Args:
    flat: Name -> array of any float dtype in the layout of PyTorch, as
      checkpoints.npz.load reads them. Widths may differ from the published
      file, which has 16 to 128 channels and 128 codes of 512.
    where: What the message of an error begins with, such as the path.

  Returns:
    The same names, without the moving averages of training -> float32 array.
    Axes of kernels go from [O, I, H, W] to [H, W, I, O]; those of transposed
    convolutions thereby from [I, O, H, W] to [H, W, O, I].

  Raises:
    ValueError: Arrays are missing, unexpected, of another shape or not float.
  """
  flat = {name: x for name, x in flat.items() if name not in _IGNORED}
  if problems := _problems(flat):
    more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
    raise ValueError(
      f"{where}: expected the arrays of a mask codec such as vae-oid.npz, "
      f"found {'; '.join(problems[:10])}{more}"
    )
  return {
    name: jnp.asarray(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x, "float32")
    for name, x in flat.items()
  }


def to_arrays(params: Params) -> dict[str, np.ndarray]:
  """The inverse of `from_arrays`: float32 arrays in the layout of PyTorch."""
  flat = {name: np.asarray(x) for name, x in params.items()}
  return {
    name: x.transpose(3, 2, 0, 1) if x.ndim == 4 else x
    for name, x in flat.items()
  }


def _problems(flat):
  """Lists what is wrong: with the names, else with shapes and dtypes."""
  sizes = {name: x.size for name, x in flat.items()}
  expected = variants.mask_codec_shapes(sizes)
  missing = sorted(expected.keys() - flat.keys())
  unexpected = sorted(flat.keys() - expected.keys())
  if missing or unexpected:
    return [f"{name}: missing" for name in missing] + [
      f"{name}: unexpected.{registry.did_you_mean(name, missing)}"
      for name in unexpected
    ]
  return tree.compare(expected, flat) + [
    f"{name}: {x.dtype}, expected a float dtype"
    for name, x in sorted(flat.items())
    if not jnp.issubdtype(x.dtype, jnp.floating)
  ]


@jax.jit
def encode(params: Params, masks: Masks) -> Int[Array, "B 16"]:
  """Returns the codes of masks, in row-major order.

  A code is the index of the codebook entry nearest to the encoded mask, of
  equally near ones the first.

  `masks` are 1 inside, 0 outside, and in between at smooth edges, as data/masks
  crops them.

  Raises:
    ValueError: masks of another shape or dtype.

  Source: encode_to_codebook_indices of big_vision
  (pp/proj/paligemma/segmentation.py), whose masks are [B, 64, 64, 1].
  """
  inexact = jnp.issubdtype(masks.dtype, jnp.floating)
  if masks.shape[1:] != (SIDE, SIDE) or not (inexact or masks.dtype == bool):
    raise ValueError(
      f"masks are {masks.dtype}{list(masks.shape)}, expected bool or float"
      f"[B, {SIDE}, {SIDE}] in [0, 1]"
    )
  x = to_latents(params, masks).reshape(len(masks), GRID * GRID, -1)
  # |x - e|^2 without |x|^2, which is the same for all codes.
  codebook = params[CODEBOOK]
  products = jnp.einsum("BTD,CD->BTC", x, codebook, precision="highest")
  distances = (codebook**2).sum(axis=-1)[None, None] - 2 * products
  return distances.argmin(axis=-1).astype("int32")


@jax.jit
def decode(
  params: Params, codes: Int[ArrayLike, "B 16"]
) -> Float[Array, "B 64 64"]:
  """Returns masks: about 1 inside, -1 outside, and 0 at the edge.

  Values may exceed that range; data/masks.paste takes them, mapped to [0, 1].
  A mask with a code out of range is NaN.

  Raises:
    ValueError: codes of another shape or dtype.

  Source: get_reconstruct_masks of big_vision
  (evaluators/proj/paligemma/transfers/segmentation.py), which returns
  [B, 64, 64, 1].
  """
  integer = jnp.issubdtype(codes.dtype, jnp.integer)
  if codes.shape[1:] != (GRID * GRID,) or not integer:
    raise ValueError(
      f"codes are {codes.dtype}{list(codes.shape)}, expected int"
      f"[B, {GRID * GRID}]"
    )
  codebook = params[CODEBOOK]
  known = (codes >= 0) & (codes < len(codebook))
  x = jnp.where(known[..., None], codebook[codes], jnp.nan)
  return from_latents(params, x.reshape(len(codes), GRID, GRID, -1))


def to_latents(params: Params, masks: Masks) -> Float[Array, "B 4 4 D"]:
  """The encoder alone."""
  x = 2 * masks[..., None].astype("float32") - 1
  for layer in _DOWN:
    x = jax.nn.relu(_conv(params, layer, x, stride=2))
  x = _block(params, "encoder.8", x)
  x = _block(params, "encoder.9", x)
  return _conv(params, "encoder.10", x)


def from_latents(
  params: Params, latents: Float[Array, "B 4 4 D"]
) -> Float[Array, "B 64 64"]:
  """The decoder alone."""
  x = jax.nn.relu(_conv(params, "decoder.0", latents))
  x = _block(params, "decoder.2", x)
  x = _block(params, "decoder.3", x)
  for layer in _UP:
    x = jax.nn.relu(_conv_transpose(params, layer, x))
  return _conv(params, "decoder.12", x)[..., 0]


def _block(params, name, x):
  y = jax.nn.relu(_conv(params, f"{name}.net.0", x))
  y = jax.nn.relu(_conv(params, f"{name}.net.2", y))
  return x + _conv(params, f"{name}.net.4", y)


def _conv(params, layer, x, stride=1):
  """torch.nn.Conv2d, which keeps H and W, or halves them with stride 2."""
  x = jax.lax.conv_general_dilated(
    x,
    params[f"{layer}.weight"],
    window_strides=(stride, stride),
    padding="SAME",  # as much on both sides, for these kernels and strides
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )
  return x + params[f"{layer}.bias"][None, None, None]


def _conv_transpose(params, layer, x):
  """torch.nn.ConvTranspose2d(kernel_size=4, stride=2, padding=1)."""
  x = jax.lax.conv_transpose(
    x,
    params[f"{layer}.weight"],
    strides=(2, 2),
    # PyTorch crops 1 pixel of the full result at each side; JAX pads the input,
    # where kernel_size - 1 = 3 on each side would be the full result.
    padding=((2, 2), (2, 2)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    transpose_kernel=True,  # it is the gradient of a convolution: flipped
    precision="highest",
  )
  return x + params[f"{layer}.bias"][None, None, None]
