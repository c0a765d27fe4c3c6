"""The mask codec of the published size computes what PyTorch's does."""

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma.checkpoints import npz
from paligemma.models import mask_codec

torch = pytest.importorskip("torch")

from tests.parity import torch_mask_codec  # noqa: E402

BATCH = 5
# Values of order one, through 14 layers in float32. The margin between the two
# nearest codes below which rounding may swap them.
BOUND = 1e-5
MARGIN = 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_equals_torch(seed, agree, tmp_path):
  theirs = torch_mask_codec.random_codec(seed, **torch_mask_codec.PUBLISHED)
  arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
  np.savez(tmp_path / "vae-oid.npz", **arrays)
  params = mask_codec.from_arrays(npz.load(tmp_path / "vae-oid.npz"))
  masks = torch_mask_codec.random_masks(BATCH)
  with torch.no_grad():
    nearest = theirs.distances(masks).topk(2, largest=False).values
    assert (nearest[..., 1] - nearest[..., 0]).min() > MARGIN
    codes = theirs.encode(masks)
    decoded = theirs.decode(codes)

  found = mask_codec.encode(params, masks.numpy())
  np.testing.assert_array_equal(found, codes)
  assert len(np.unique(found)) > 20
  agree("mask codec", mask_codec.decode(params, found), decoded, BOUND)


def test_any_codes_equal_torch(agree):
  theirs = torch_mask_codec.random_codec(7, **torch_mask_codec.PUBLISHED)
  params = mask_codec.from_arrays(
    {name: x.numpy() for name, x in theirs.state_dict().items()}
  )
  codes = torch.randint(0, 128, (BATCH, 16))
  with torch.no_grad():
    decoded = theirs.decode(codes)
  found = mask_codec.decode(params, jnp.asarray(codes.numpy(), jnp.int32))
  agree("mask codec", found, decoded, BOUND)
