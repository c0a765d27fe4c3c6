"""/v1/embeddings as OpenAI's, of pictures, and of texts where a tower reads
them.

SigLIP embeds both into one space; of PaliGemma it is the mean of the tokens
that the decoder is given for a picture.
"""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from scripts.serving import errors, pictures_in
from scripts.serving.errors import Refused
from scripts.serving.fields import Strict
from scripts.serving.served import Served

router = APIRouter()

_IS_PICTURE = ("data:", "https://", "http://")


class EmbeddingRequest(Strict):
  """What is to be embedded: data URIs of pictures, or texts."""

  model: str
  input: str | Annotated[list[str], Field(min_length=1, max_length=64)]
  encoding_format: Literal["float", "base64"] = "float"
  user: str = ""


@router.post("/v1/embeddings")
async def embed(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
  """Embeds pictures and texts, each by itself."""
  served: Served = request.app.state.served
  if served.adapter(asked.model) is not None:
    raise Refused(
      400, f'embeddings are those of "{served.name}" alone', param="model"
    )
  inputs = [asked.input] if isinstance(asked.input, str) else asked.input
  data = []
  for i, text in enumerate(inputs):
    found = await served.run(_embed, served, text, f"input.{i}")
    data.append(
      {
        "object": "embedding",
        "index": i,
        "embedding": _written(found, asked.encoding_format),
      }
    )
  usage = {"prompt_tokens": 0, "total_tokens": 0}  # it has no prompts
  return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def _embed(served, text, where):
  engine = served.engine
  embed_texts = getattr(engine, "embed_texts", None)
  try:
    if embed_texts and not text.startswith(_IS_PICTURE):
      return embed_texts([text])[0]
    picture = pictures_in.read(text, where, served.limits, served.hosts)
    return engine.embed_images([picture])[0]
  except ValueError as error:
    raise errors.of(error) from None


def _written(embedding, form):
  embedding = np.asarray(embedding, "<f4")
  if form == "float":
    return embedding.tolist()
  return base64.b64encode(embedding.tobytes()).decode()
