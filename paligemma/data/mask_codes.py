"""The encoder of the mask codec in NumPy.

For data workers, which encode masks after crops and flips; it computes the same
as models/mask_codec.encode, which explains the layers and names of arrays.
"""

import functools
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float32, Int, Shaped

from paligemma import disk, messages, tree, variants
from paligemma.data import masks as masks_lib

_DOWN = [x for x, kind in variants.MASK_CODEC.items() if kind == "down"]
_BLOCKS = ("encoder.8", "encoder.9")
_NAMES = variants.mask_codec_shapes({}, "encoder").keys()


class Encoder:
  """Encodes a mask and its box; pickles small.

  The file is "vae-oid.npz" or has its names, bare or under "params/"; it is
  read and checked when the first mask is encoded, once per process.
  """

  def __init__(self, path: epath.PathLike):
    self._path = str(path)

  def __repr__(self):
    return f"Encoder({self._path!r})"

  def __call__(
    self, mask: masks_lib.Mask, box: Sequence[float]
  ) -> tuple[int, ...]:
    """Returns the 16 codes of a mask within a box; see masks.crop."""
    (codes,) = self.codes(masks_lib.crop(mask, box)[None])
    return tuple(codes.tolist())

  def codes(
    self, masks: Shaped[np.ndarray, "B 64 64"]
  ) -> Int[np.ndarray, "B 16"]:
    """Returns the codes of masks, bool or in [0, 1]."""
    codebook = _read(self._path)[variants.CODEBOOK]
    products = self.latents(masks) @ codebook.T
    # |x - e|^2 without |x|^2, which is the same for all codes.
    distances = (codebook**2).sum(axis=-1) - 2 * products
    return distances.argmin(axis=-1).astype(np.int32)

  def latents(
    self, masks: Shaped[np.ndarray, "B 64 64"]
  ) -> Float32[np.ndarray, "B 16 D"]:
    """Returns the vectors whose nearest codebook entries are the codes."""
    params = _read(self._path)
    side = masks_lib.SIDE
    masks = np.asarray(masks, np.float32)
    if masks.shape[1:] != (side, side):
      raise ValueError(
        f"masks have shape {masks.shape}, expected (B, {side}, {side})"
      )
    x = 2 * masks[..., None] - 1
    for layer in _DOWN:
      x = np.maximum(_conv(params, layer, x, stride=2), 0)
    for block in _BLOCKS:
      y = np.maximum(_conv(params, f"{block}.net.0", x), 0)
      y = np.maximum(_conv(params, f"{block}.net.2", y), 0)
      x = x + _conv(params, f"{block}.net.4", y)
    x = _conv(params, "encoder.10", x)
    return x.reshape(len(x), -1, x.shape[-1])


@functools.lru_cache(maxsize=2)
def _read(path):
  """Returns the arrays of a file as float32; a process reads them once."""
  try:
    with disk.path(path).open("rb") as file, np.load(file) as archive:
      names = {name.removeprefix("params/"): name for name in archive.files}
      arrays = {n: archive[names[n]] for n in sorted(_NAMES & names.keys())}
  except Exception as error:  # NumPy raises a dozen kinds for damaged files
    reason = " ".join(str(error).split())
    raise ValueError(f"{path}: cannot read a mask codec: {reason}") from None
  problems = [f"{name}: missing" for name in sorted(_NAMES - arrays.keys())]
  problems = problems or [
    f"{name}: {array.dtype}, expected a float dtype"
    for name, array in arrays.items()
    if array.dtype.kind != "f"
  ]
  sizes = {name: array.size for name, array in arrays.items()}
  shapes = variants.mask_codec_shapes(sizes, "encoder")
  if problems := problems or tree.compare(shapes, arrays):
    raise ValueError(
      f"{path}: expected the arrays of a mask codec such as vae-oid.npz, found "
      f"{messages.listed(problems, 5)}"
    )
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def _conv(params, layer, x, stride=1):
  """torch.nn.Conv2d in NHWC, keeping height and width or halving both."""
  weight = params[f"{layer}.weight"]
  outputs, inputs, side, _ = weight.shape
  pad = (side - 1) // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
  windows = windows[:, ::stride, ::stride]
  flat = windows.reshape(-1, inputs * side * side)
  y = flat @ weight.reshape(outputs, -1).T + params[f"{layer}.bias"]
  return y.reshape(*windows.shape[:3], outputs)
