"""Writes the golden npz files with PyTorch, an independent SigLIP.

Run by hand, never by the tests, in an environment of its own:

    pip install torch==2.13.0
    python -m tests.goldens.siglip.make_siglip

Each case is a tiny model of random weights, run in float64 as big_vision's
two_towers.py, vit.py, text_transformer.py and naflex_vit.py describe it. What
would hide a mistake is avoided: no bias and no scale is neutral, dimensions are
pairwise different, padding of NaFlex holds large numbers.

An npz holds the inputs, "image" (of NaFlex "patches", "type", "yidx", "xidx")
and "text"; the expected "zimg", "ztxt", "logits", and "sigmoid_loss" and
"softmax_loss" of the batch; "params/...", with the names and shapes of
big_vision's files; and "grads/...", of the sigmoid loss, or without a bias of
the softmax loss, with the same names. Weights and images are rounded to float16
before use, hence exact at half the size.
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parent
IMG = {"patch": 2, "width": 12, "depth": 2, "mlp": 17, "heads": 3}
TXT = {"width": 10, "depth": 2, "mlp": 19, "heads": 2, "vocab": 31, "length": 7}
BATCH = 5
SIZE = (6, 6)  # pixels
# NaFlex: rows and columns of each image, of which none fills all patches.
GRIDS = ((1, 1), (2, 5), (5, 2), (3, 3), (1, 11))
PATCHES = 12
POSITIONS = 4  # side of the grid of embeddings that is resized
CASES = {
  "scan": {},
  # The image has an output head too; positions of the text are added twice, as
  # in some old files.
  "loop": {"scan": False, "head": 11, "twice": True},
  "no_bias": {"img_pool": "tok", "txt_pool": "map", "head": 11, "bias": False},
  "naflex": {"naflex": True},
}


class Parameters(dict):
  """{name: tensor}, drawn when they are first asked for."""

  def __init__(self, rng):
    super().__init__()
    self._rng = rng

  def draw(self, name, *shape, scale=0.3, start=0.0):
    value = start + scale * self._rng.standard_normal(shape)
    value = value.astype(np.float16).astype(np.float64)
    self[name] = torch.from_numpy(value).requires_grad_()
    return self[name]

  def dense(self, name, x, shape, axes=1):
    """x times a kernel over its last axes, plus a bias."""
    inputs = tuple(x.shape[-axes:])
    scale = np.prod(inputs) ** -0.5
    kernel = self.draw(f"{name}/kernel", *inputs, *shape, scale=scale)
    bias = self.draw(f"{name}/bias", *shape)
    return torch.tensordot(x, kernel, axes) + bias

  def norm(self, name, x):
    scale = self.draw(f"{name}/scale", x.shape[-1], start=1.0)
    bias = self.draw(f"{name}/bias", x.shape[-1])
    return functional.layer_norm(x, x.shape[-1:], scale, bias, eps=1e-6)

  def attention(self, name, x, z, heads, mask=None):
    """Of x to z; mask[..., z] says what may be read."""
    name = f"{name}/MultiHeadDotProductAttention_0"
    shape = heads, x.shape[-1] // heads
    q, k, v = (
      self.dense(f"{name}/{part}", of, shape).transpose(1, 2)
      for part, of in (("query", x), ("key", z), ("value", z))
    )
    weights = q @ k.transpose(2, 3) * shape[1] ** -0.5
    if mask is not None:
      weights = weights.masked_fill(~mask, torch.finfo(x.dtype).min)
    x = (weights.softmax(3) @ v).transpose(1, 2)
    return self.dense(f"{name}/out", x, (z.shape[-1],), axes=2)

  def mlp(self, name, x, size):
    width = x.shape[-1]
    x = self.dense(f"{name}/MlpBlock_0/Dense_0", x, (size,))
    x = functional.gelu(x, approximate="tanh")
    return self.dense(f"{name}/MlpBlock_0/Dense_1", x, (width,))

  def encoder(self, name, x, sizes, mask=None):
    for i in range(sizes["depth"]):
      block = f"{name}/encoderblock_{i}"
      y = self.norm(f"{block}/LayerNorm_0", x)
      x = x + self.attention(block, y, y, sizes["heads"], mask)
      y = self.norm(f"{block}/LayerNorm_1", x)
      x = x + self.mlp(block, y, sizes["mlp"])
    return self.norm(f"{name}/encoder_norm", x)

  def map_head(self, name, x, sizes, mask=None):
    name = f"{name}/MAPHead_0"
    probe = self.draw(f"{name}/probe", 1, 1, x.shape[-1])
    probe = probe.expand(len(x), -1, -1)
    x = self.attention(name, probe, x, sizes["heads"], mask)
    y = self.norm(f"{name}/LayerNorm_0", x)
    return (x + self.mlp(name, y, sizes["mlp"]))[:, 0]


def image_tower(params, image, pool, head):
  sizes, patch = IMG, IMG["patch"]
  batch, height, width, _ = image.shape
  x = image.reshape(batch, height // patch, patch, width // patch, patch, 3)
  x = x.permute(0, 1, 3, 2, 4, 5).flatten(1, 2)
  x = params.dense("img/embedding", x, (sizes["width"],), axes=3)
  x = x + params.draw("img/pos_embedding", 1, *x.shape[1:])
  if pool == "tok":
    token = params.draw("img/cls", 1, 1, sizes["width"])
    x = torch.cat([token.expand(batch, -1, -1), x], 1)
  x = params.encoder("img/Transformer", x, sizes)
  x = params.map_head("img", x, sizes) if pool == "map" else x[:, 0]
  return params.dense("img/head", x, (head,)) if head else x


def naflex_tower(params, patches, kind):
  sizes = IMG
  x = params.dense("img/embedding", patches, (sizes["width"],))
  grid = params.draw("img/pos_embedding", POSITIONS, POSITIONS, sizes["width"])
  rows = []
  for rows_and_columns in GRIDS:
    resized = functional.interpolate(
      grid.permute(2, 0, 1)[None],
      rows_and_columns,
      mode="bilinear",
      antialias=True,
    )
    row = resized[0].flatten(1).T
    rows.append(functional.pad(row, (0, 0, 0, PATCHES - len(row))))
  x = x + torch.stack(rows)
  is_patch = (kind == 1)[:, None, None]
  x = params.encoder("img/Transformer", x, sizes, is_patch)
  return params.map_head("img", x, sizes, is_patch)


def text_tower(params, text, pool, embedding, twice):
  sizes = TXT
  table = params.draw("txt/Embed_0/embedding", sizes["vocab"], sizes["width"])
  shape = 1, sizes["length"], sizes["width"]
  x = table[text] + params.draw("txt/pos_embedding", *shape)
  if twice:
    x = x + params.draw("txt/Encoder_0/pos_embedding", *shape)
  x = params.encoder("txt/Encoder_0", x, sizes)
  x = params.map_head("txt", x, sizes) if pool == "map" else x[:, -1]
  return params.dense("txt/head", x, (embedding,))


def normalize(z):
  return z / (z.norm(dim=1, keepdim=True) + 1e-8)


def stack(arrays):
  """Layers of each tower as one array, as a scanned model has them."""
  stacked = {}
  for name, value in arrays.items():
    if "encoderblock_" not in name:
      stacked[name] = value
    elif "encoderblock_0" in name:
      layers = (
        arrays[name.replace("encoderblock_0", f"encoderblock_{i}")]
        for i in range(IMG["depth"])
      )
      new = name.replace("encoderblock_0", "encoderblock")
      stacked[new] = np.stack(list(layers))
  return stacked


def make_image(rng):
  return rng.uniform(-1, 1, (BATCH, *SIZE, 3)).astype(np.float16)


def make_patches(rng):
  """A batch of GRIDS, with large numbers in the padding."""
  shape = len(GRIDS), PATCHES, 3 * IMG["patch"] ** 2
  patches = rng.uniform(-1, 1, shape).astype(np.float16)
  kind, y, x = np.zeros((3, *shape[:2]), np.int32)
  for i, (rows, columns) in enumerate(GRIDS):
    number = rows * columns
    kind[i, :number] = 1
    y[i, :number], x[i, :number] = np.divmod(np.arange(number), columns)
    patches[i, number:] *= 100
  return {"patches": patches, "type": kind, "yidx": y, "xidx": x}


def run(
  rng,
  *,
  scan=True,
  head=None,
  img_pool="map",
  txt_pool="last",
  bias=True,
  twice=False,
  naflex=False,
):
  """Returns what the file of a case holds."""
  params = Parameters(rng)
  text = rng.integers(0, TXT["vocab"], (BATCH, TXT["length"]))
  inputs = make_patches(rng) if naflex else {"image": make_image(rng)}
  if naflex:
    patches = torch.from_numpy(inputs["patches"].astype(np.float64))
    zimg = naflex_tower(params, patches, torch.from_numpy(inputs["type"]))
  else:
    image = torch.from_numpy(inputs["image"].astype(np.float64))
    zimg = image_tower(params, image, img_pool, head)
  zimg = normalize(zimg)
  ztxt = text_tower(
    params, torch.from_numpy(text), txt_pool, zimg.shape[1], twice
  )
  ztxt = normalize(ztxt)
  logits = zimg @ ztxt.T * params.draw("t", 1, start=2.0).exp()
  if bias:
    logits = logits + params.draw("b", 1, start=-2.0)
  losses = {
    "sigmoid_loss": -functional.logsigmoid(
      (2 * torch.eye(BATCH) - 1).double() * logits
    )
    .sum(1)
    .mean(),
    "softmax_loss": sum(
      functional.cross_entropy(x, torch.arange(BATCH)) / 2
      for x in (logits, logits.T)
    ),
  }
  losses["sigmoid_loss" if bias else "softmax_loss"].backward()
  values = {n: x.detach().numpy().astype(np.float16) for n, x in params.items()}
  grads = {n: x.grad.numpy().astype(np.float32) for n, x in params.items()}
  grads.pop("txt/Encoder_0/pos_embedding", None)  # that of what it is added to
  if scan:
    values, grads = stack(values), stack(grads)
  expected = {"zimg": zimg, "ztxt": ztxt, "logits": logits, **losses}
  return {
    "text": text.astype(np.int32),
    **inputs,
    **{
      name: x.detach().numpy().astype(np.float32)
      for name, x in expected.items()
    },
    **{f"params/{name}": x for name, x in values.items()},
    **{f"grads/{name}": x for name, x in grads.items()},
  }


def main():
  for seed, (case, options) in enumerate(CASES.items()):
    arrays = run(np.random.default_rng(seed), **options)
    np.savez_compressed(FOLDER / f"{case}.npz", **arrays)


if __name__ == "__main__":
  main()
