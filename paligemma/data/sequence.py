r"""Prompt and answer -> token ids and masks; all masks are made here.

PaliGemmaProcessor of Hugging Face transformers writes the same tokens after its
image tokens; its token_type_ids are mask_ar, and its labels are not -100 where
mask_loss is 1. It pads on the left, which does not matter to rotary positions
and masked attention. Its ids differ from ours, those of big_vision, in three
known cases:

- It tokenizes prefix and "\n" together: a prefix that ends in "\n" ends in
  another piece if the vocabulary has one for "\n\n".
- "<bos>", "<eos>", "<pad>" and "<unk>" in a text become those tokens; here they
  are ordinary text.
- A space after "<image>" belongs to the prompt; do not write it there.
"""

from collections.abc import Sequence
from operator import index

import numpy as np

from paligemma import registry
from paligemma.data.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]

TOO_LONG = {
  "error": "refuse the example",
  "truncate": "cut the end, of the answer and then of the prompt",
}


def training(
  tokenizer: Tokenizer,
  prefix: str,
  suffix: str,
  text_len: int,
  *,
  too_long: str = "error",
  unsupervised: Sequence[tuple[int, int]] = (),
  causal: bool = False,
) -> Arrays:
  r"""Returns a supervised sequence: [bos] prefix "\n" suffix [eos] pad.

  Prefix, "\n" and suffix are tokenized separately, so that the ids of the
  prompt do not depend on the answer. There are text_len + 1 positions, because
  the input is [:-1] and the target [1:]. For the prefix "<loc0003>", the suffix
  "<seg005>" and text_len 6:

      text        2  256003  108  257029  1  0  0
      mask_ar     0       0    0       1  1  1  1   1: causal attention
      mask_input  1       1    1       1  1  0  0   1: not padding
      mask_loss   0       0    0       1  1  0  0   1: supervised

  With `causal`, for a decoder without image tower: [bos] prefix suffix [eos]
  pad, and mask_ar is 1 throughout. Gemma was trained on plain text: prompt and
  answer are not separated (arXiv:2403.08295, section 2).

  Args:
    tokenizer, prefix, suffix: Encoder, prompt and answer.
    text_len: L, number of input positions.
    too_long: What to do with more than L + 1 tokens. "error" (default) or
      "truncate": keep the first L + 1, as the reference does, and add
      `truncated`, int32[], 1 if this example was cut. If the prompt alone is
      that long, no token is supervised.
    unsupervised: (start, stop) of spans that are not supervised, in characters
      of the suffix, ascending and disjoint.
    causal: Whether it is plain text.

  Returns:
    dict of int32[L + 1]; mask_input is bool.

  Raises:
    ValueError: There are too many tokens, or an unsupervised span begins or
      ends within a token.

  Source: PaliGemma (arXiv:2407.07726), section 3.1 and figure 2.
  """
  registry.lookup(TOO_LONG, too_long, "choice of too_long")
  prompt_ids = encode_prompt(tokenizer, prefix, causal=causal)
  suffix_ids = tokenizer.encode(suffix, eos=True)
  targets = _targets(tokenizer, suffix, suffix_ids, unsupervised)
  ids, room = prompt_ids + suffix_ids, text_len + 1
  if len(ids) > room and too_long == "error":
    raise ValueError(
      f"prompt and answer have {len(prompt_ids)} + {len(suffix_ids)} tokens, "
      f"text_len {text_len} has room for {room}; raise text_len or shorten them"
    )
  kept = min(len(ids), room)
  position = np.arange(room)
  arrays = {
    "text": _pad(ids[:kept], room, tokenizer.pad_id),
    "mask_ar": (causal | (position >= len(prompt_ids))).astype(np.int32),
    "mask_input": position < kept,
    "mask_loss": _pad(([0] * len(prompt_ids) + targets)[:kept], room, 0),
  }
  if too_long == "truncate":
    arrays["truncated"] = np.int32(len(ids) > room)
  return arrays


def prompt(
  tokenizer: Tokenizer,
  prefix: str,
  text_len: int,
  *,
  too_long: str = "error",
  causal: bool = False,
) -> Arrays:
  r"""Returns a prompt without an answer: [bos] prefix "\n" pad.

  For "<loc0003>" and text_len 6:

      text        2  256003  108  0  0  0
      mask_ar     0       0    0  1  1  1
      mask_input  1       1    1  0  0  0

  With `causal`, as of `training`, there is no "\n", and mask_ar is 1.

  There are L = text_len positions. With too_long "truncate" the first L tokens
  are kept, without "\n", as the reference does; by default more are an error.

  Returns:
    dict of int32[L]; mask_input is bool.
  """
  registry.lookup(TOO_LONG, too_long, "choice of too_long")
  ids = encode_prompt(tokenizer, prefix, causal=causal)
  if too_long == "truncate":
    ids = ids[:text_len]
  if len(ids) > text_len:
    raise ValueError(
      f"prompt has {len(ids)} tokens, text_len is {text_len}; raise text_len "
      "or shorten the prompt"
    )
  is_prompt = np.arange(text_len) < len(ids)
  return {
    "text": _pad(ids, text_len, tokenizer.pad_id),
    "mask_ar": (causal | ~is_prompt).astype(np.int32),
    "mask_input": is_prompt,
  }


def encode_prompt(
  tokenizer: Tokenizer, prefix: str, *, causal: bool = False
) -> list[int]:
  """Returns the tokens of `prompt`, without padding."""
  end = "" if causal else "\n"
  return tokenizer.encode(prefix, bos=True) + tokenizer.encode(end)


def check_rows(ids: Sequence[int], rows: int) -> None:
  """Raises a ValueError for a token beyond the decoder's embeddings."""
  if max(ids) >= rows:
    raise ValueError(
      f"prompt has token {max(ids)}, beyond the {rows:,} rows of the decoder; "
      "give the tokenizer of the checkpoint"
    )


def _targets(tokenizer, suffix, suffix_ids, unsupervised):
  """Returns mask_loss of the answer: 0 in the unsupervised spans, else 1."""
  if not unsupervised:
    return [1] * len(suffix_ids)
  ids, targets, position = [], [], 0
  try:
    spans = [(index(start), index(stop)) for start, stop in unsupervised]
  except (TypeError, ValueError):
    raise ValueError(
      f"unsupervised is {unsupervised!r:.60}, expected (start, stop) of each "
      "span, in characters of the answer"
    ) from None
  for start, stop in [*spans, (len(suffix), len(suffix))]:
    for text, target in ((suffix[position:start], 1), (suffix[start:stop], 0)):
      ids += tokenizer.encode(text)
      targets += [target] * (len(ids) - len(targets))
    position = stop
  if ids != suffix_ids[:-1]:
    raise ValueError(
      f'unsupervised spans {spans} of "{suffix:.60}" do not begin and end '
      "where tokens do"
    )
  return [*targets, 1]


def _pad(ids, length, pad_id):
  return np.array(ids + [pad_id] * (length - len(ids)), np.int32)
