"""The mask codec in PyTorch, to compare ours with.

Written from the published layers ("All in Tokens", arXiv:2301.02229, its VQVAE
with downsample_ratio 16 and moving averages for the codebook), whose names in a
state dict are those of vae-oid.npz. Needs torch alone.
"""

import itertools

import torch
from torch import nn

# The published sizes: channels from the mask to the codebook and back.
PUBLISHED = {
  "down": (16, 32, 64, 128),
  "code": 512,
  "up": (128, 128, 64, 32, 16),
  "codes": 128,
}


class Block(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.net = nn.Sequential(
      nn.Conv2d(width, width, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(width, width, 3, padding=1),
      nn.ReLU(),
      nn.Conv2d(width, width, 1),
    )

  def forward(self, x):
    return x + self.net(x)


class Codebook(nn.Module):
  def __init__(self, codes, width):
    super().__init__()
    self.register_buffer("_embedding", torch.randn(codes, width))
    self.register_buffer("_ema_cluster_size", torch.rand(codes))
    self.register_buffer("_ema_w", torch.randn(codes, width))


class MaskCodec(nn.Module):
  """Channels after each layer that changes them; the number of codes."""

  def __init__(self, down, code, up, codes):
    super().__init__()
    layers = []
    for i, o in itertools.pairwise((1, *down)):
      layers += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.ReLU()]
    layers += [Block(down[-1]), Block(down[-1]), nn.Conv2d(down[-1], code, 1)]
    self.encoder = nn.Sequential(*layers)
    self._vq_vae = Codebook(codes, code)
    layers = [nn.Conv2d(code, up[0], 1), nn.ReLU(), Block(up[0]), Block(up[0])]
    for i, o in itertools.pairwise(up):
      layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1), nn.ReLU()]
    self.decoder = nn.Sequential(*layers, nn.Conv2d(up[-1], 1, 1))

  def distances(self, masks):
    """float[B, 64, 64] in [0, 1] -> distances [B, 16, codes]."""
    x = self.encoder(2 * (masks[:, None] - 0.5))
    x = x.flatten(2).transpose(1, 2)
    return torch.cdist(x, self._vq_vae._embedding[None])

  def encode(self, masks):
    return self.distances(masks).argmin(-1)

  def decode(self, codes):
    """int[B, 16] -> float[B, 64, 64]."""
    x = self._vq_vae._embedding[codes].transpose(1, 2).unflatten(2, (4, 4))
    return self.decoder(x)[:, 0]


@torch.no_grad()
def random_codec(seed, down, code, up, codes):
  """A codec that uses many of its codes and decodes to values in about [-1, 1].

  Its codebook is drawn from where the encoder puts random masks.
  """
  torch.manual_seed(seed)
  codec = MaskCodec(down, code, up, codes)
  for layer in codec.modules():
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
      nn.init.kaiming_normal_(layer.weight)
      nn.init.normal_(layer.bias, std=0.2)
  masks = random_masks(codes)
  encoded = codec.encoder(2 * masks[:, None] - 1).transpose(0, 1).flatten(1).T
  codec._vq_vae._embedding[:] = encoded[torch.randperm(len(encoded))[:codes]]
  decoded = codec.decode(codec.encode(masks))
  codec.decoder[-1].weight /= decoded.abs().max()
  return codec.eval()


def random_masks(count):
  """float[count, 64, 64]: rectangles with soft edges here and there."""
  masks = torch.zeros(count, 64, 64)
  for mask in masks:
    (y0, y1), (x0, x1) = torch.randint(0, 65, (2, 2)).sort().values
    mask[y0:y1, x0:x1] = 1
    mask[torch.rand(64, 64) < 0.1] = torch.rand(())
  return masks
