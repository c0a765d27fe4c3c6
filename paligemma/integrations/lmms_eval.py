"""PaliGemma as a model of lmms-eval, which asks it as it was trained.

    pip install ".[lmms_eval]"
    lmms-eval --model paligemma --tasks textvqa_val,docvqa_val --batch_size 8 \
      --model_args ckpt=runs/textvqa,tokenizer=paligemma_tokenizer.model

lmms-eval finds it by its entry point (paligemma/integrations/__init__.py). The
question is that of the document, in PROMPTS' words; instructions that lmms-eval
puts around it ("Answer the question using a single word or phrase.") are left
out, as no PaliGemma was trained with them. Tasks that PROMPTS does not know are
asked as lmms-eval does, which the log says.

Source: lmms-eval 0.7.3, lmms_eval/api/{model,task,instance}.py and
models/registry_v2.py.
"""

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from paligemma import api, io, registry
from paligemma.data import image as image_lib
from paligemma.data import pictures, sequence
from paligemma.data.tokenizer import Tokenizer
from paligemma.models import paligemma as paligemma_model

# Task, without the split in its name -> prompt, of fields of its documents:
# those of configs/transfers.
PROMPTS = {
  "chartqa": "{question}",
  "coco2014_cap": "caption en",
  "coco2017_cap": "caption en",
  "coco_karpathy": "caption en",
  "countbenchqa": "answer en {question}",
  "docvqa": "{question}",
  "flickr30k": "caption en",
  "gqa": "answer en {question}",
  "infovqa": "answer en {question}",
  "nocaps": "caption en",
  "ok_vqa": "answer en {question}",
  "pope": "{question}",
  "stvqa": "answer en {question}",
  "textcaps": "caption en",
  "textvqa": "answer en {question}",
  "vizwiz_vqa": "answer en {question}",
  "vqav2": "answer en {question}",
}
_SPLIT = re.compile(r"(_(train|val|val2014|test|lite|adv|pop|random))+$")
_MAX_NEW_TOKENS = 128  # where a task says nothing

_log = logging.getLogger(__name__)


class PaliGemma(lmms):
  """A checkpoint that answers the requests of lmms-eval."""

  is_simple = True

  def __init__(
    self,
    ckpt: str,
    tokenizer: str,
    *,
    dtype: str = "bfloat16",
    batch_size: int | str = 32,
    prompt: str | None = None,
    preprocessing: str | None = None,
    device: str | None = None,
    max_batch_size: int | None = None,
  ):
    """Reads a checkpoint.

    Args:
      ckpt: What paligemma.load takes.
      tokenizer: File of the checkpoint's.
      dtype: To compute in.
      batch_size: Requests at a time.
      prompt: For all tasks, of fields of their documents, such as
        "answer en {question}". Default: see PROMPTS.
      preprocessing: As of paligemma.generate.
      device, max_batch_size: What lmms-eval gives to all models; JAX computes
        on the devices it finds.
    """
    super().__init__()
    del device, max_batch_size
    self._model, self._params = io.load(ckpt, dtype)
    self._tok = Tokenizer(tokenizer)
    self._batch_size, self._prompt = int(batch_size), prompt
    if preprocessing is None:
      preprocessing = self._model.metadata.get("preprocessing", "reference")
    self._preprocessing = preprocessing

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers requests of (context, options, doc_to_visual, id, task, split).

    Options max_new_tokens, until, num_beams, do_sample and temperature count.
    """
    answers = [""] * len(requests)
    alike = {}
    for i, request in enumerate(requests):
      alike.setdefault(_decoding(request.args[1]), []).append(i)
    for (length, sampler, stops), chosen in alike.items():
      for start in range(0, len(chosen), self._batch_size):
        batch = chosen[start : start + self._batch_size]
        asked = [self._ask(requests[i]) for i in batch]
        found = api.generate(
          self._model,
          self._params,
          self._tok,
          [images for _, images in asked],
          [prompt for prompt, _ in asked],
          max_decode_len=length,
          sampler=sampler,
          rng=batch[0],
          batch_size=self._batch_size,
          preprocessing=self._preprocessing,
        )
        for i, text in zip(batch, found, strict=True):
          for stop in stops:
            text = text.partition(stop)[0]
          answers[i] = text
    return answers

  def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
    """Scores requests of (context, answer, doc_to_visual, id, task, split).

    Returns:
      For each (loss, is_greedy) as `text` of a result, as the evaluator of
      0.7.3 makes a string of a bare pair: the negative log-probability of the
      answer and of its end, in nats, of which multiple choice takes the least
      there; and whether the answer is the greedy one.
    """
    return [GenerationResult(self._score(request)) for request in requests]

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    """Raises ValueError: PaliGemma answers one question."""
    raise ValueError("PaliGemma answers one question, in one round")

  def _ask(self, request) -> tuple[str, list[Any]]:
    """The prompt of a request, and its pictures."""
    context, _, doc_to_visual, number, task, split = request.args
    doc = self.task_dict[task][split][number]
    template = self._prompt or PROMPTS.get(_SPLIT.sub("", task))
    if template is None:
      _warn(task)
      prompt = context
    else:
      try:
        prompt = template.format(**doc)
      except KeyError as error:
        raise ValueError(
          f"{task}: its documents have no {error} for the prompt "
          f'"{template}", but {", ".join(doc)}'
        ) from None
    return prompt, list(doc_to_visual(doc))

  def _score(self, request):
    answer = request.args[1]
    if not isinstance(answer, str):
      _, _, _, number, task, split = request.args
      answer = str(answer(self.task_dict[task][split][number]))
    prompt, images = self._ask(request)
    # One space is between a context and an answer there, here a line break.
    answer = answer.removeprefix(" ")
    length = sum(len(self._tok.encode(text)) for text in (prompt, answer))
    # bos, the line break and eos, rounded up, so that few programs compile.
    text_len = -(-(length + 3) // 32) * 32
    arrays = sequence.training(self._tok, prompt, answer, text_len)
    res = paligemma_model.resolution(self._model, self._params)
    to_model = registry.lookup(
      image_lib.PREPROCESSING, self._preprocessing, "preprocessing"
    )
    pixels = [to_model(pictures.pixels(x), (res, res)) for x in images]
    arrays["image"] = pixels[0] if len(pixels) == 1 else np.stack(pixels)
    batch = {key: value[None] for key, value in arrays.items()}
    loss, is_greedy = _loss(self._model, self._params, batch)
    return float(loss), bool(is_greedy)


@functools.cache
def _warn(task):
  _log.warning("%s: asked in the words of lmms-eval", task)


def _decoding(options: Mapping[str, Any]) -> tuple[int, str, tuple[str, ...]]:
  """What generate_until decodes with: longest answer, sampler, what ends it."""
  length = int(options.get("max_new_tokens") or _MAX_NEW_TOKENS)
  until = options.get("until") or ()
  stops = (until,) if isinstance(until, str) else tuple(filter(None, until))
  temperature = options.get("temperature") or 0.0
  beams = int(options.get("num_beams") or 1)
  sampler = "greedy"
  if options.get("do_sample") and temperature > 0:
    sampler = f"temperature({temperature})"
  elif beams > 1:
    sampler = f"beam(beam_size={beams})"
  return length, sampler, stops


@functools.partial(jax.jit, static_argnames="model")
def _loss(model, params, batch):
  """Returns the sum over the answer, and whether it is the greedy one."""
  text, mask_ar = batch["text"], batch["mask_ar"]
  logits, _ = model.apply(
    {"params": params},
    batch["image"],
    text[:, :-1],
    mask_ar[:, :-1],
    input_mask=batch["mask_input"][:, :-1],
  )
  targets, is_answer = text[:, 1:], batch["mask_loss"][:, 1:] > 0
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  is_greedy = (log_probs.argmax(axis=-1) == targets) | ~is_answer
  return -(chosen * is_answer).sum(), is_greedy.all()
