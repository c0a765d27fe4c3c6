"""A SigLIP of transformers computes the same here, and comes back unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma.data import image as image_lib
from paligemma.data import naflex

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.transformers_models import random_siglip  # noqa: E402

BOUND = 1e-5
TEXTS = 4


@pytest.fixture(scope="module", params=[0, 1, 2])
def theirs(request):
  return random_siglip(request.param)


@pytest.fixture(scope="module")
def flexible():
  return random_siglip(3, naflex=True)


def inputs(theirs):
  vision, text = theirs.config.vision_config, theirs.config.text_config
  rng = np.random.default_rng(0)
  size = (TEXTS, vision.image_size, vision.image_size, 3)
  tokens = rng.integers(
    0, text.vocab_size, (TEXTS, text.max_position_embeddings)
  )
  return rng.uniform(-1, 1, size).astype("float32"), tokens


def sigmoid_loss(zimg, ztxt, out):
  """As of the paper: summed over the texts, averaged over the images."""
  logits = zimg @ ztxt.T * out["t"][None] + out["b"][None]
  same = 2 * jnp.eye(len(logits)) - 1
  return -jax.nn.log_sigmoid(same * logits).sum(axis=1).mean(), logits


def compare(theirs, folder, image, tokens, agree, **of_image):
  """Embeddings, logits, loss and gradients."""
  theirs.save_pretrained(folder)
  model, params = paligemma.load(folder)

  def loss(params):
    zimg, ztxt, out = model.apply({"params": params}, image, tokens)
    value, logits = sigmoid_loss(zimg, ztxt, out)
    return value, (zimg, ztxt, logits)

  (value, found), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    params
  )
  expected = theirs(
    input_ids=torch.from_numpy(tokens), return_loss=True, **of_image
  )
  expected.loss.backward()
  pairs = {
    "image embeddings": expected.image_embeds,
    "text embeddings": expected.text_embeds,
    "logits": expected.logits_per_image,
  }
  for (what, ours), tensor in zip(
    zip(pairs, found, strict=True), pairs.values(), strict=True
  ):
    agree(f"SigLIP: {what}", ours, tensor.detach().numpy(), BOUND)
  agree("SigLIP: loss", value, expected.loss.detach().numpy(), BOUND)
  # Gradients lie in a folder as the parameters do.
  paligemma.save(folder / "grads", model, grads, format="huggingface")
  of_ours = type(theirs).from_pretrained(folder / "grads").state_dict()
  for name, parameter in theirs.named_parameters():
    ours, grad = of_ours[name].numpy(), parameter.grad.numpy()
    scale = max(1.0, np.abs(grad).max())
    agree("SigLIP: gradients", ours / scale, grad / scale, BOUND)
  theirs.zero_grad()


def test_same_numbers(theirs, tmp_path, agree):
  image, tokens = inputs(theirs)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  compare(theirs, tmp_path / "x", image, tokens, agree, pixel_values=pixels)


def test_naflex_same_numbers(flexible, tmp_path, agree):
  vision, text = flexible.config.vision_config, flexible.config.text_config
  rng = np.random.default_rng(0)
  grids = np.array([(1, 1), (2, 5), (5, 2), (3, 3), (1, 11)])
  shape = (len(grids), 12, 3 * vision.patch_size**2)
  kind, y, x = np.zeros((3, len(grids), 12), np.int32)
  for i, (rows, columns) in enumerate(grids):
    n = rows * columns
    kind[i, :n] = 1
    y[i, :n], x[i, :n] = np.divmod(np.arange(n), columns)
  patches = rng.uniform(-1, 1, shape).astype("float32")
  tokens = rng.integers(
    0, text.vocab_size, (len(grids), text.max_position_embeddings)
  )
  compare(
    flexible,
    tmp_path / "x",
    (patches, kind, y, x),
    tokens,
    agree,
    pixel_values=torch.from_numpy(patches),
    pixel_attention_mask=torch.from_numpy(kind),
    spatial_shapes=torch.from_numpy(grids),
  )


@pytest.mark.parametrize("is_naflex", [False, True])
def test_there_and_back_is_bit_equal(is_naflex, tmp_path):
  theirs = random_siglip(4, naflex=is_naflex)
  theirs.save_pretrained(tmp_path / "there")
  model, params = paligemma.load(tmp_path / "there")
  paligemma.save(tmp_path / "x.npz", model, params)
  again, params = paligemma.load(tmp_path / "x.npz")
  assert again == model
  paligemma.save(tmp_path / "here", again, params, format="huggingface")
  back = type(theirs).from_pretrained(tmp_path / "here")
  ours, expected = back.state_dict(), theirs.state_dict()
  assert ours.keys() == expected.keys()
  assert all(torch.equal(ours[name], expected[name]) for name in expected)
  ours, expected = back.config.to_dict(), theirs.config.to_dict()
  for tower in ("vision_config", "text_config"):
    given = {"dtype": None, "bos_token_id": None, "eos_token_id": None}
    assert ours[tower] | given == expected[tower] | given


WORDS = ("Red", "circle,", "blue-ish", "It's", "snake_case", "ΟΔΟΣ", "É", "9.5")


def texts(seed=0):
  rng = np.random.default_rng(seed)
  drawn = [" ".join(rng.choice(WORDS, n)) for n in rng.integers(0, 12, 50)]
  return [*drawn, "", "  two  spaces ", "tab\tand\nline", "\N{GRINNING FACE}!"]


@pytest.mark.parametrize("kind", ["t5", "gemma"])
def test_tokenizers_encode_the_same(kind, request, tmp_path):
  """As AutoTokenizer of the folder that is written, and its own class."""
  import transformers

  file = "paligemma/assets/tiny_tokenizer.model"
  if kind == "t5":
    file = tmp_path / "x.model"
    file.write_bytes(request.getfixturevalue("t5_model"))
  random_siglip(0).save_pretrained(tmp_path / "there")
  model, params = paligemma.load(tmp_path / "there")
  folder = tmp_path / "here"
  paligemma.save(folder, model, params, format="huggingface", tokenizer=file)
  tok = paligemma.SiglipTokenizer(folder)
  assert tok.is_gemma == (kind == "gemma")
  theirs = [transformers.AutoTokenizer.from_pretrained(folder)]
  if kind == "t5":
    theirs.append(transformers.SiglipTokenizer.from_pretrained(folder))
  else:
    own = transformers.Siglip2Tokenizer.from_pretrained(
      folder, padding_side="right", add_eos_token=True, add_bos_token=False
    )
    theirs.append(own)
  for length in (5, 16, 64):
    ours, _ = tok.encode([tok.canonicalize(x) for x in texts()], length)
    for one in theirs:
      found = one(
        texts(), padding="max_length", truncation=True, max_length=length
      )
      for i, text in enumerate(texts()):
        assert ours[i].tolist() == found["input_ids"][i], (type(one), text)


def test_naflex_images_are_patched_the_same(flexible, tmp_path, agree):
  import transformers
  from transformers.models.siglip2 import image_processing_pil_siglip2 as theirs

  rng = np.random.default_rng(0)
  for _ in range(300):
    height, width = rng.integers(1, 3000, 2).tolist()
    patch, most = int(rng.choice([14, 16, 32])), int(rng.integers(1, 1025))
    expected = theirs.get_image_size_for_max_num_patches(
      height, width, patch, most
    )
    rows, columns = naflex.grid((height, width), patch, most)
    assert (rows * patch, columns * patch) == expected
  flexible.save_pretrained(tmp_path / "there")
  model, params = paligemma.load(tmp_path / "there")
  paligemma.save(tmp_path / "here", model, params, format="huggingface")
  processor = transformers.AutoImageProcessor.from_pretrained(
    tmp_path / "here", backend="pil"
  )
  picture = rng.integers(0, 256, (50, 23, 3), np.uint8)
  found = processor(picture, return_tensors="np")
  patch, most = model.img.patch_size, model.img.grid**2
  rows, columns = naflex.grid((50, 23), patch, most)
  image = image_lib.reference(picture, (rows * patch, columns * patch))
  patches, kind, _, _ = naflex.patchify(image, patch, most)
  np.testing.assert_array_equal(found["pixel_attention_mask"][0], kind)
  assert found["spatial_shapes"][0].tolist() == [rows, columns]
  # Pillow rounds to uint8 after both of its passes.
  agree("NaFlex: pixels", patches, found["pixel_values"][0], 2 / 127.5)
