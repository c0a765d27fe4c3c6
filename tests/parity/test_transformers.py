"""Models of transformers, loaded here and given back, compute the same.

What is compared runs in float32 with eager attention, the only one of
transformers that knows the soft cap. It applies the prefix-LM mask only when it
is given token_type_ids, 0 for the prompt and 1 for the suffix.
"""

import functools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paligemma
from paligemma import tree
from paligemma.decoding import decode
from paligemma.training import losses

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.transformers_models import STYLES, random_model  # noqa: E402

BOUND = 1e-4
NEW_TOKENS = 8
# Seed -> sliding window, images of a prompt. The shortest sequence has 4 image
# tokens, 3 of text and 4 more: longer than any window.
SEEDS = {0: (None, None), 1: (None, 2), 2: (5, None), 3: (3, 2)}
CASES = {
  f"{style}-{seed}": (style, seed, window, images)
  for style in STYLES
  for seed, (window, images) in SEEDS.items()
  if window is None or style.startswith("paligemma2")  # Gemma 1 has none
}


class Case:
  """A random model on both sides, and two ragged prompts with their answers."""

  def __init__(self, style, seed, window, images, folder):
    self.folder = folder
    self.theirs = random_model(style, seed, sliding_window=window)
    self.theirs.save_pretrained(folder / "theirs")
    self.model, self.params = paligemma.load(folder / "theirs")
    # Rows of their table that only fill it up are no tokens of ours.
    self.vocab_size = self.model.llm.vocab_size
    self.inputs = make_inputs(seed, self.theirs.config, self.vocab_size, images)

  @functools.cached_property
  def ours_forward(self):
    return forward_here(self.model, self.params, self.inputs)

  @functools.cached_property
  def theirs_forward(self):
    return forward_there(self.theirs, self.inputs, self.vocab_size)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def case(request, tmp_path_factory):
  return Case(*request.param, tmp_path_factory.mktemp("case"))


def make_inputs(seed, config, vocab_size, images):
  """Rows of different length, padded on the right, as we lay them out."""
  rng = np.random.default_rng(seed)
  res = config.vision_config.image_size
  shape = (2, res, res, 3) if images is None else (2, images, res, res, 3)
  prefix = rng.choice(np.arange(3, 8), (2, 1), replace=False)
  suffix = rng.choice(np.arange(4, 8), (2, 1), replace=False)
  position = np.arange((prefix + suffix).max())
  input_mask = position < prefix + suffix
  tokens = np.setdiff1d(np.arange(3, vocab_size), config.image_token_id)
  return {
    "image": rng.uniform(-1, 1, shape).astype(np.float32),
    "text": rng.choice(tokens, input_mask.shape).astype(np.int32),
    "mask_ar": (position >= prefix).astype(np.int32),
    "mask_input": input_mask,
    "mask_loss": input_mask & (position >= prefix),
  }


def split(inputs):
  """The prompts alone, padded on the right, and as many tokens of answers."""
  mask = inputs["mask_input"] & (inputs["mask_ar"] == 0)
  length = mask.sum(axis=1)
  steps = (inputs["mask_input"] & ~mask).sum(axis=1).min()
  prompts = {
    "image": inputs["image"],
    "text": np.where(mask, inputs["text"], 0)[:, : length.max()],
    "mask_ar": np.zeros((len(mask), length.max()), np.int32),
    "mask_input": mask[:, : length.max()],
  }
  after = length[:, None] + np.arange(steps)
  return prompts, np.take_along_axis(inputs["text"], after, axis=1)


def forward_here(model, params, inputs):
  """Image tokens, text logits, loss[B], gradients of the attention weights."""
  text = inputs["text"]

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(weights, others):
    logits, out = model.apply(
      {"params": tree.unflatten({**weights, **others})},
      inputs["image"],
      text,
      inputs["mask_ar"],
      input_mask=inputs["mask_input"],
    )
    loss = losses.next_token(
      logits[:, :-1], text[:, 1:], inputs["mask_loss"][:, 1:]
    )
    return loss.mean(), (out["img/zimg"], logits, loss)

  flat = tree.flatten(params)
  weights, others = tree.partition(
    flat, tree.match_any(["llm/layers/attn/.*"], flat)
  )
  (_, (image_tokens, logits, loss)), grads = jax.jit(run)(weights, others)
  return {
    "image_tokens": image_tokens,
    "logits": logits,
    "loss": loss,
    "grads": grads,
  }


def images_and_ids(theirs, prompts):
  """Their pixel_values, and input_ids with each image's tokens in front."""
  vision = theirs.config.vision_config
  pixels = prompts["image"].reshape(-1, *prompts["image"].shape[-3:])
  batch = len(prompts["text"])
  image_len = (vision.image_size // vision.patch_size) ** 2
  image_len *= len(pixels) // batch
  image_ids = np.full((batch, image_len), theirs.config.image_token_id)
  ids = np.concatenate([image_ids, prompts["text"]], axis=1)
  return torch.tensor(pixels.transpose(0, 3, 1, 2)), torch.tensor(ids).long()


def with_images(mask, length, value):
  """A mask of their whole sequence from one of the text."""
  width = [(0, 0), (length - mask.shape[1], 0)]
  return torch.tensor(np.pad(mask, width, constant_values=value)).long()


def forward_there(theirs, inputs, vocab_size):
  """The same of transformers: padded on the right, all at once."""
  pixels, ids = images_and_ids(theirs, inputs)
  length = ids.shape[1]
  theirs.zero_grad()
  out = theirs(
    input_ids=ids,
    pixel_values=pixels,
    attention_mask=with_images(inputs["mask_input"], length, 1),
    token_type_ids=with_images(inputs["mask_ar"], length, 0),
  )
  logits = out.logits[:, -inputs["text"].shape[1] :, :vocab_size]
  token_losses = torch.nn.functional.cross_entropy(
    logits[:, :-1].transpose(1, 2),
    torch.tensor(inputs["text"][:, 1:]).long(),
    reduction="none",
  )
  mask_loss = torch.tensor(inputs["mask_loss"][:, 1:])
  loss = (token_losses * mask_loss).sum(dim=1) / mask_loss.sum(dim=1)
  loss.mean().backward()
  tokens = out.image_hidden_states
  return {
    "image_tokens": tokens.reshape(len(ids), -1, tokens.shape[-1]).detach(),
    "logits": logits.detach(),
    "loss": loss.detach(),
    "grads": attention_gradients(theirs),
  }


def attention_gradients(theirs):
  """Their gradients of the decoder's attention, by our names and axes."""
  text = theirs.config.text_config
  stacked = {name: [] for name in "qkvo"}
  for layer in theirs.model.language_model.layers:
    for name, grads in stacked.items():
      grad = getattr(layer.self_attn, f"{name}_proj").weight.grad.numpy()
      # nn.Linear holds (out, in): heads out of q, k and v, into o.
      grad = grad if name == "o" else grad.T
      heads = np.split(grad, grad.shape[1] // text.head_dim, axis=1)
      grads.append(np.stack(heads))  # (N, D, H)
  q, k, v, o = (np.stack(grads) for grads in stacked.values())
  attn = "llm/layers/attn"
  grads = {f"{attn}/attn_vec_einsum/w": o.swapaxes(2, 3)}
  if text.num_attention_heads == text.num_key_value_heads:
    return {**grads, f"{attn}/qkv_einsum/w": np.stack([q, k, v], axis=1)}
  return {
    **grads,
    f"{attn}/q_einsum/w": q,
    f"{attn}/kv_einsum/w": np.stack([k, v], axis=1),
  }


def decode_here(model, params, prompts, answers):
  """The logits after the prompt and after each token of the answer."""

  @jax.jit
  def run(params, answers):
    variables = {"params": params}
    x, _ = model.apply(
      variables,
      prompts["image"],
      prompts["text"],
      input_mask=prompts["mask_input"],
      mask_ar=prompts["mask_ar"],
      method="embed_image_and_text",
    )
    first, cache = model.apply(
      variables,
      *x,
      cache_size=x[0].shape[1] + answers.shape[1],
      mutable=["cache"],
      method="prefill_cache",
    )

    def extend(cache, tokens):
      x, _ = model.apply(variables, tokens[:, None], method="embed_text")
      logits, cache = model.apply(
        variables | cache, x, mutable=["cache"], method="extend_cache"
      )
      return cache, logits[:, 0]

    _, rest = jax.lax.scan(extend, cache, answers.T)
    return jnp.concatenate([first, jnp.swapaxes(rest, 0, 1)], axis=1)

  return run(params, answers)


def padded_left(theirs, prompts):
  """Their inputs for generation: everything is a prompt, padding in front."""
  pixels, ids = images_and_ids(theirs, prompts)
  mask = with_images(prompts["mask_input"], ids.shape[1], 1)
  order = torch.argsort(mask, dim=1, stable=True)
  return {
    "pixel_values": pixels,
    "input_ids": ids.gather(1, order),
    "attention_mask": mask.gather(1, order),
    "token_type_ids": torch.zeros_like(ids),
  }


@torch.no_grad()
def decode_there(theirs, prompts, answers, vocab_size):
  """The same of transformers, with its cache."""
  inputs = padded_left(theirs, prompts)
  mask = inputs["attention_mask"]
  out = theirs(**inputs, use_cache=True)
  logits = [out.logits[:, -1]]
  for token in torch.tensor(answers).long().split(1, dim=1):
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    out = theirs(
      input_ids=token,
      attention_mask=mask,
      past_key_values=out.past_key_values,
      use_cache=True,
    )
    logits.append(out.logits[:, -1])
  return torch.stack(logits, dim=1)[:, :, :vocab_size]


def test_image_tokens(case, agree):
  ours, theirs = case.ours_forward, case.theirs_forward
  agree("image tokens", ours["image_tokens"], theirs["image_tokens"], BOUND)


def test_logits(case, agree):
  valid = case.inputs["mask_input"]
  theirs = np.asarray(case.theirs_forward["logits"])[valid]
  assert theirs.std() > 0.3
  ours = np.asarray(case.ours_forward["logits"])[valid]
  agree("logits, all at once", ours, theirs, BOUND)


def test_loss_and_gradients_of_attention(case, agree):
  ours, theirs = case.ours_forward, case.theirs_forward
  agree("loss", ours["loss"], theirs["loss"], BOUND)
  assert ours["grads"].keys() == theirs["grads"].keys()
  for name, grad in theirs["grads"].items():
    assert np.abs(grad).max() > 1e-3
    agree(f"gradient of {name}", ours["grads"][name], grad, BOUND)


def test_prefill_and_every_extension(case, agree):
  prompts, answers = split(case.inputs)
  agree(
    "logits, prefill and extensions",
    decode_here(case.model, case.params, prompts, answers),
    decode_there(case.theirs, prompts, answers, case.vocab_size),
    BOUND,
  )


def test_greedy_text(case):
  prompts, _ = split(case.inputs)
  ours = decode.generate(
    case.model, case.params, prompts, max_decode_len=NEW_TOKENS
  ).tokens
  inputs = padded_left(case.theirs, prompts)
  rows = case.theirs.config.text_config.vocab_size
  theirs = case.theirs.generate(
    **inputs,
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    suppress_tokens=list(range(case.vocab_size, rows)) or None,
  )[:, inputs["input_ids"].shape[1] :]
  # Both end when every row has.
  theirs = np.pad(theirs, [(0, 0), (0, NEW_TOKENS - theirs.shape[1])])
  np.testing.assert_array_equal(ours, theirs)


def come_back(folder, caplog):
  """from_pretrained, that must neither warn nor miss nor make up a weight."""
  caplog.clear()
  transformers.logging.enable_propagation()
  cls = transformers.PaliGemmaForConditionalGeneration
  try:
    theirs, info = cls.from_pretrained(
      folder, attn_implementation="eager", output_loading_info=True
    )
  finally:
    transformers.logging.disable_propagation()
  assert caplog.messages == []
  assert not any(info.values()), info
  return theirs.eval()


def test_way_back(case, agree, caplog):
  folder = case.folder / "back"
  paligemma.save(folder, case.model, case.params, format="huggingface")
  theirs = come_back(folder, caplog)
  valid = case.inputs["mask_input"]
  back = forward_there(theirs, case.inputs, case.vocab_size)
  ours = np.asarray(case.ours_forward["logits"])[valid]
  agree("logits, way back", ours, np.asarray(back["logits"])[valid], BOUND)
  assert_same_weights(theirs, case.theirs, case.vocab_size)


def assert_same_weights(one, two, vocab_size):
  """Bit for bit, but for the rows that only fill the table up."""
  two = dict(two.named_parameters())
  for name, weight in one.named_parameters():
    rows = vocab_size if name.endswith("embed_tokens.weight") else len(weight)
    assert weight.dtype == two[name].dtype
    assert torch.equal(weight[:rows], two[name][:rows]), name


def test_loss_of_their_labels(tmp_path, agree):
  # Theirs is the mean over the tokens of a batch: of one row, it is ours. It
  # counts all rows of the table, so none may be there to fill it up.
  theirs = random_model(
    "paligemma2_27b", 4, sliding_window=3, image_token_inside=True
  )
  theirs.save_pretrained(tmp_path)
  model, params = paligemma.load(tmp_path)
  rows = theirs.config.text_config.vocab_size
  assert model.llm.vocab_size == rows
  inputs = make_inputs(4, theirs.config, rows, images=None)
  expected = []
  for i in range(len(inputs["text"])):
    row = {name: value[i : i + 1] for name, value in inputs.items()}
    pixels, ids = images_and_ids(theirs, row)
    is_answer = with_images(row["mask_loss"], ids.shape[1], 0).bool()
    out = theirs(
      input_ids=ids,
      pixel_values=pixels,
      attention_mask=with_images(row["mask_input"], ids.shape[1], 1),
      token_type_ids=with_images(row["mask_ar"], ids.shape[1], 0),
      labels=torch.where(is_answer, ids, -100),
    )
    expected.append(out.loss.item())
  ours = forward_here(model, params, inputs)["loss"]
  agree("loss", ours, expected, BOUND)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("style", STYLES)
def test_round_trips_are_bit_equal(style, dtype, tmp_path, caplog):
  theirs = random_model(style, 5).to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path / "theirs")
  model, params = paligemma.load(tmp_path / "theirs")

  # npz -> Hugging Face -> npz
  paligemma.save(tmp_path / "1.npz", model, params)
  model, params = paligemma.load(tmp_path / "1.npz")
  paligemma.save(tmp_path / "2", model, params, format="huggingface")
  model, params = paligemma.load(tmp_path / "2")
  paligemma.save(tmp_path / "2.npz", model, params)
  # The settings beside them differ: a Hugging Face folder says more.
  one, two = (_members(tmp_path / f"{i}.npz") for i in (1, 2))
  assert one == two

  # Hugging Face -> Orbax -> Hugging Face
  model, params = paligemma.load(tmp_path / "theirs")
  paligemma.save(tmp_path / "orbax", model, params, format="orbax")
  model, params = paligemma.load(tmp_path / "orbax")
  paligemma.save(tmp_path / "3", model, params, format="huggingface")
  back = come_back(tmp_path / "3", caplog)
  assert_same_weights(back, theirs, model.llm.vocab_size)


def _members(path):
  """The bytes of every array in an npz, by name."""
  with zipfile.ZipFile(path) as archive:
    return {name: archive.read(name) for name in archive.namelist()}
