"""Writes mask_codec.npz with PyTorch, an independent mask codec.

Run by hand, never by the tests, in an environment of its own:

    pip install torch==2.13.0
    python -m tests.goldens.mask_codec.make_mask_codec

A tiny codec of random weights, with widths that are prime and pairwise
different, run in float64. The npz holds its arrays under "params/" with the
names of vae-oid.npz, "masks" and their "codes", and what these codes are
"decoded" to. Weights and masks are rounded to float16 before use, hence exact
at half the size; each code is nearer than the next by MARGIN at least, so that
float32 finds the same one.
"""

import pathlib

import numpy as np
import torch

from tests.parity import torch_mask_codec

PATH = pathlib.Path(__file__).parent / "mask_codec.npz"
SIZES = {
  "down": (3, 5, 7, 11),
  "code": 13,
  "up": (19, 17, 23, 2, 29),
  "codes": 37,
}
BATCH = 2
MARGIN = 1e-2


@torch.no_grad()
def main():
  codec = torch_mask_codec.random_codec(0, **SIZES).half().double()
  masks = torch_mask_codec.random_masks(BATCH).half().double()
  nearest = codec.distances(masks).topk(2, largest=False).values
  margin = (nearest[..., 1] - nearest[..., 0]).min()
  assert margin > MARGIN, margin
  codes = codec.encode(masks)
  assert len(codes.unique()) > 10, codes
  np.savez_compressed(
    PATH,
    masks=masks.numpy().astype(np.float16),
    codes=codes.numpy().astype(np.uint8),
    decoded=codec.decode(codes).numpy().astype(np.float32),
    **{
      f"params/{name}": array.numpy().astype(np.float16)
      for name, array in codec.state_dict().items()
    },
  )


if __name__ == "__main__":
  main()
