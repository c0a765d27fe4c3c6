"""In transformers with bitsandbytes a folder in nf4 is the model that is here.

Its kernel for CPUs multiplies in bfloat16, so what it has read is compared.
"""

import numpy as np
import pytest

import paligemma
from paligemma import init
from paligemma.checkpoints import npz
from paligemma.models import paligemma as paligemma_model
from scripts import convert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")

BOUND = 1e-4


# Of bitsandbytes, where there is no GPU.
@pytest.mark.filterwarnings("ignore")
def test_logits(tmp_path):
  sizes = {"width": 128, "depth": 2, "mlp_dim": 192, "num_heads": 2}
  model = paligemma_model.make(
    "paligemma_3b",
    img={**sizes, "num_classes": 128},
    llm={**sizes, "num_kv_heads": 1, "head_dim": 64, "vocab_size": 1792},
  )
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(0, 0.1, x.shape).astype(np.float32)
    for name, x in init.shapes(model, 28).items()
  }
  npz.save(tmp_path / "a.npz", arrays)
  folder = tmp_path / "hf"
  convert.convert(
    tmp_path / "a.npz", folder, format="huggingface", quantize="nf4"
  )
  theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    folder, attn_implementation="eager"
  ).eval()
  layer = theirs.model.language_model.layers[1]
  assert type(layer.mlp.down_proj).__name__ == "Linear4bit"
  vision = theirs.model.vision_tower
  assert not any(
    type(x).__name__ == "Linear4bit" for _, x in vision.named_modules()
  )
  theirs = theirs.dequantize()
  model, params = paligemma.load(tmp_path / "a.npz", quantize="nf4")
  image = rng.uniform(-1, 1, (1, 28, 28, 3)).astype(np.float32)
  text = np.array([[2, 50, 60, 70, 108]], np.int32)
  ours, _ = model.apply({"params": params}, image, text, np.zeros_like(text))
  tokens = np.concatenate([np.full((1, 4), 1792), text], axis=1)
  with torch.no_grad():
    found = theirs(
      input_ids=torch.tensor(tokens),
      pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
      attention_mask=torch.ones(tokens.shape, dtype=torch.long),
      token_type_ids=torch.zeros(tokens.shape, dtype=torch.long),
    ).logits[:, 4:, :1792]
  assert np.abs(ours).max() > 1
  np.testing.assert_allclose(found.numpy(), ours, atol=BOUND, rtol=0)
