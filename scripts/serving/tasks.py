"""The tasks of PaliGemma as plain JSON: detect, segment, caption, answer.

    {"text": "<loc...> cat", "height": 480, "width": 640, "objects": [
      {"box": [y0, x0, y1, x1], "label": "cat", "score": 0.93, "mask": ...}]}

Boxes are in pixels of the picture; scores and masks as in files of predictions,
see paligemma/evals/answer_objects.py.
"""

import base64
import io
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from PIL import Image
from pydantic import Field

from paligemma.data import masks
from paligemma.evals import answer_objects
from paligemma.metrics import confidence
from paligemma.serving.request import Request as EngineRequest
from scripts.serving import answers, pictures_in
from scripts.serving.errors import Refused
from scripts.serving.fields import Strict
from scripts.serving.served import Served

router = APIRouter()

Cancels = Annotated[ExitStack, Depends(answers.cancelling)]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern="^[^;<]*$")]
Lang = Annotated[str, Field(pattern="^[a-z]{2,3}(-[A-Za-z]{2,4})?$")]


class Task(Strict):
  """A picture, and who answers; the base model by default."""

  image: str
  model: str | None = None
  max_tokens: int | None = Field(None, ge=1)


class Caption(Task):
  """A description in a language."""

  lang: Lang = "en"


class Question(Caption):
  """A question in a language, which the answer is in too."""

  question: str = Field(min_length=1, max_length=2000)


class Detect(Task):
  """What to find; objects with a lower score are left out."""

  labels: list[Label] = Field(min_length=1, max_length=64)
  min_score: float = Field(0.0, ge=0, le=1)


class Segment(Detect):
  """What to find with its mask: COCO's run lengths, or a PNG in base64."""

  mask: Literal["rle", "png"] = "rle"


@router.post("/v1/caption")
async def caption(
  asked: Caption, request: Request, cancels: Cancels
) -> dict[str, Any]:
  """Describes a picture."""
  return await _ask(request, asked, f"caption {asked.lang}", cancels)


@router.post("/v1/answer")
async def answer(
  asked: Question, request: Request, cancels: Cancels
) -> dict[str, Any]:
  """Answers a question about a picture."""
  prompt = f"answer {asked.lang} {asked.question}"
  return await _ask(request, asked, prompt, cancels)


@router.post("/v1/detect")
async def detect(
  asked: Detect, request: Request, cancels: Cancels
) -> dict[str, Any]:
  """Finds objects, as boxes."""
  prompt = f"detect {' ; '.join(asked.labels)}"
  return await _ask(request, asked, prompt, cancels, _objects)


@router.post("/v1/segment")
async def segment(
  asked: Segment, request: Request, cancels: Cancels
) -> dict[str, Any]:
  """Finds objects, as boxes and masks."""
  if request.app.state.served.decode_masks is None:
    raise Refused(
      400, "this server has no mask codec (--codec), which decodes masks"
    )
  prompt = f"segment {' ; '.join(asked.labels)}"
  return await _ask(request, asked, prompt, cancels, _objects)


async def _ask(
  request: Request,
  asked: Task,
  prompt: str,
  cancels: ExitStack,
  finish: Callable[..., dict[str, Any]] = lambda *_: {},
):
  served: Served = request.app.state.served
  if not served.sees:
    raise Refused(400, "the model is a decoder alone, which sees no pictures")
  model = served.name if asked.model is None else asked.model
  adapter = served.adapter(model)
  most = served.tokens(asked.max_tokens)
  size = []

  def make():
    pixels = pictures_in.read(asked.image, "image", served.limits, served.hosts)
    size[:] = pixels.shape[:2]
    return [
      EngineRequest(
        prompt,
        (pixels,),
        adapter,
        max_tokens=most,
        deadline=served.deadline,
      )
    ]

  (found,) = await answers.whole(served, make, cancels)
  told = {
    "model": model,
    "prompt": prompt,
    "text": found.end.text,
    "complete": found.end.reason == "stop",
    "height": size[0],
    "width": size[1],
  }
  return told | await served.run(finish, served, asked, told, found.tokens)


def _objects(served, asked, told, tokens):
  pieces = served.tokenizer.pieces([token.id for token in tokens])
  scores = confidence.of_boxes(pieces, [token.log_prob for token in tokens])
  is_segment = isinstance(asked, Segment)
  add = answer_objects.AddObjects(
    decode=served.decode_masks if is_segment else None
  )
  record = add(
    {
      "prediction": told["text"],
      "height": told["height"],
      "width": told["width"],
      "confidences": scores,
      "where": "image",
    }
  )
  kept = [x for x in record["objects"] if x["score"] >= asked.min_score]
  if is_segment and asked.mask == "png":
    for item in kept:
      if "mask" in item:
        item["mask"] = _png(item["mask"], told["height"], told["width"])
  malformed = {key: record[key] for key in ("malformed",) if key in record}
  return {"objects": kept, **malformed}


def _png(mask, height, width):
  """A mask as a picture, white on black, in a data URI."""
  file = io.BytesIO()
  pixels = masks.from_rle(mask, height, width)
  Image.fromarray(pixels).save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
