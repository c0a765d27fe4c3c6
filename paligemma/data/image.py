"""RGB pixels -> resized -> the value range of the model.

`PREPROCESSING` names the ways from pixels to the input of the image tower.
"""

import functools

import numpy as np
from jaxtyping import Float32, Num, Shaped, UInt8
from PIL import Image

from paligemma import registry

MAX_PIXELS = 89_478_485  # where Pillow begins to warn: 268 MB of RGB

Size = tuple[int, int]  # (height, width) in pixels
Pixels = UInt8[np.ndarray, "H W 3"]
Input = Float32[np.ndarray, "height width 3"]


def resize(
  image: Shaped[np.ndarray, "H W C"],
  size: Size,
  method: str = "bilinear",
  antialias: bool = True,
) -> Float32[np.ndarray, "height width C"]:
  """Resizes by the definition of tf.image.resize and jax.image.resize.

  Pixel centres lie at half integers. Every output pixel is the weighted mean of
  the input pixels around it; the kernel is widened by the scale when the image
  shrinks. Weights of pixels inside the image are normalized to sum to one. The
  result is neither rounded nor clipped.

  Args:
    image: uint8, floating point or bool.
    method: Key of KERNELS. "bilinear" (triangle kernel, default); "bicubic"
      (Keys 1981, a = -0.5), "lanczos3" and "lanczos5" overshoot the range of
      the input at edges; "area" is the mean of the area that a new pixel
      covers, "nearest" the pixel at its centre, both whatever antialias.
    antialias: Whether to widen the kernel when the image shrinks.
  """
  height, width, channels = image.shape
  lines = image.reshape(height, width * channels)
  rows = np.empty((size[0], width * channels), np.float32)
  for new, old, weights in _bands(height, size[0], method, antialias, 1):
    here = lines[old].astype(np.float32, copy=False)  # few lines, in the cache
    np.matmul(weights.T, here, out=rows[new])
  result = np.empty((size[0], size[1] * channels), np.float32)
  for new, old, weights in _bands(width, size[1], method, antialias, channels):
    np.matmul(rows[:, old], weights, out=result[:, new])
  return result.reshape(*size, channels)


def to_model_range(
  image: Num[np.ndarray, "..."],
  low: float = -1.0,
  high: float = 1.0,
  out: Float32[np.ndarray, "..."] | None = None,
) -> Float32[np.ndarray, "..."]:
  """Maps [0, 255] linearly to [low, high], in `out` if it is given."""
  scaled = np.multiply(image, (high - low) / 255, out=out, dtype=np.float32)
  scaled += low
  return scaled


def reference(
  image: Pixels,
  size: Size,
  method: str = "bilinear",
  antialias: bool = True,
  truncate: bool = False,
) -> Input:
  """Preprocesses as big_vision does: bilinear with antialiasing, to [-1, 1].

  Source: big_vision, configs/proj/paligemma/transfers/forkme.py. Its `resize`
  truncates to uint8 in between, which lowers the mean by half a level of 255;
  we do so only with `truncate`, and its notebook for fine-tuning does not.
  """
  if truncate:
    return to_model_range(truncated(image, size, method, antialias))
  new = resize(image, size, method, antialias)
  return to_model_range(new, out=new)  # fresh memory costs more than the values


def hf(image: Pixels, size: Size) -> Input:
  """Preprocesses as the processor of Hugging Face transformers: bicubic, uint8.

  Pillow resizes the image and rounds and clips to uint8 after each of its two
  passes; then values are mapped to [-1, 1] by (x / 255 - 0.5) / 0.5.

  Source: transformers 5.23, SiglipImageProcessorPil, which PaliGemmaProcessor
  uses with `backend="pil"` or without torchvision; equal within float32
  rounding, 1.2e-7, given the same Pillow. Pillow 13 filters first along the
  side that shrinks more, Pillow 12 always along the width.

  With torchvision, the default of transformers filters along the width first,
  with weights of fewer bits. Measured with torchvision 0.28 and Pillow 13: up
  to 1% of the values differ, by 1 level of 255 and rarely 2; if the height
  shrinks more than the width, a quarter of them, mostly by 1 level, by up to 5
  in smooth pictures and 19 in noise.
  """
  height, width = size
  picture = Image.fromarray(image)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  return to_model_range(np.asarray(picture))


def truncated(
  image: Pixels, size: Size, method: str, antialias: bool
) -> Pixels:
  """Resizes and truncates to uint8; arguments as of `resize`.

  Source: `resize` of big_vision. Values less than 1e-4 below a level count as
  that level, so that a constant image stays constant; only there it may differ
  from TensorFlow's.
  """
  new = resize(image, size, method, antialias)
  return np.clip(new + 1e-4, 0, 255).astype(np.uint8)


# Name -> function (pixels, (height, width) in pixels) -> input of the model.
PREPROCESSING = {
  "reference": reference,
  # As big_vision truncates it.
  "reference_uint8": functools.partial(reference, truncate=True),
  # `video_decode` of big_vision's pp/proj/paligemma/video.py.
  "aliased": functools.partial(reference, antialias=False),
  # "resize(224)" of big_vision.
  "aliased_uint8": functools.partial(reference, antialias=False, truncate=True),
  "hf": hf,
  "bilinear": reference,  # the kernel's name for the same
  # Overshoots [-1, 1] at edges.
  "bicubic": functools.partial(reference, method="bicubic"),
}


def _triangle(x):
  return np.maximum(0, 1 - x)


def _keys_cubic(x):
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(lobes, x):
  return np.where(x < lobes, np.sinc(x) * np.sinc(x / lobes), 0)


def _widened(kernel, radius, scale, antialias):
  widen = max(scale, 1.0) if antialias else 1.0
  return lambda x: kernel(np.abs(x) / widen), radius * widen


def _covered(scale, antialias):
  """Weights an old pixel by the share of it that a new one covers."""
  del antialias
  reach = (scale + 1) / 2
  return lambda x: np.clip(reach - np.abs(x), 0, min(scale, 1)), reach


def _at_centre(scale, antialias):
  del scale, antialias
  return lambda x: ((x > -0.5) & (x <= 0.5)).astype(float), 1


# Name -> function (old pixels per new one, antialias) -> (kernel, radius); the
# kernel weights an old pixel by its distance from the centre of the new one, in
# old pixels, and is 0 beyond the radius.
KERNELS = {
  "area": _covered,
  "bicubic": functools.partial(_widened, _keys_cubic, 2),
  "bilinear": functools.partial(_widened, _triangle, 1),
  "lanczos3": functools.partial(_widened, functools.partial(_lanczos, 3), 3),
  "lanczos5": functools.partial(_widened, functools.partial(_lanczos, 5), 5),
  "nearest": _at_centre,
}

_BAND = 4  # new pixels per product: more are mostly zeros, fewer are all calls


@functools.lru_cache(maxsize=64)  # at most 1 MB each for a 4000-pixel side
def _bands(length, new_length, method, antialias, channels):
  """Splits the mostly zero filter matrix into dense blocks along its diagonal.

  Returns (new, old, weights) of each: a slice of the new axis, the slice of the
  old axis that it depends on, both with `channels` interleaved, and weights
  float32[old, new], which do not mix channels.
  """
  scale = length / new_length
  kernel, radius = registry.lookup(KERNELS, method, "resize method")(
    scale, antialias
  )
  # The last block is padded with its last pixel, and cropped below.
  pixels = np.arange(-(-new_length // _BAND) * _BAND).reshape(-1, _BAND)
  centres = (np.minimum(pixels, new_length - 1) + 0.5) * scale
  used = min(int((_BAND - 1) * scale + 2 * radius) + 1, length)
  first = np.ceil(centres[:, 0] - radius - 0.5).astype(int)
  first = np.clip(first, 0, length - used)
  distance = first[:, None] + np.arange(used) + 0.5
  weights = kernel(distance[:, :, None] - centres[:, None])
  weights /= weights.sum(axis=1, keepdims=True)
  wide = np.zeros((len(first), used, channels, _BAND, channels), np.float32)
  for channel in range(channels):
    wide[:, :, channel, :, channel] = weights
  wide = wide.reshape(len(first), used * channels, _BAND * channels)
  blocks = []
  for i, start in enumerate(first.tolist()):
    stop = min((i + 1) * _BAND, new_length)
    new = slice(i * _BAND * channels, stop * channels)
    old = slice(start * channels, (start + used) * channels)
    blocks.append((new, old, wide[i, :, : new.stop - new.start]))
  return blocks
