"""Serves a checkpoint over HTTP: OpenAI's API, tasks as JSON, and a page.

    python -m scripts.serve --ckpt runs/mine --tokenizer tokenizer.model \
      --adapter cats=adapters/cats --adapter text=adapters/text

Prints the address; docs/serve.md shows what can be asked there. Only this
machine can reach it, unless --host says otherwise, which needs a token. Ctrl-C
or SIGTERM ends it once the answers being written are complete.
"""

import math
import os
import pathlib
import queue
import re
import sys
from collections.abc import Sequence

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

import numpy as np
from etils import epath

from paligemma import io, quantization
from paligemma.checkpoints.lora import adapters
from paligemma.data import siglip_tokenizer
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.decoding.grammar import pieces
from paligemma.models import siglip
from paligemma.serving import engine as engine_lib
from paligemma.serving import request
from trainers import command_line, inputs, processes, progress
from trainers.tasks import next_token

try:
  from scripts.serving import limits, served, server, siglip_engine
except ModuleNotFoundError as error:
  if error.name not in ("fastapi", "uvicorn", "prometheus_client"):
    raise
  sys.exit(f'error: {error.name} is missing: pip install "paligemma[serve]"')

TOKEN = "PALIGEMMA_TOKEN"
_SITES = re.compile(r"https?://[\w.*:-]+( https?://[\w.*:-]+)*")


def read_token(
  host: str,
  token: str | None,
  token_file: epath.PathLike | None,
  insecure: bool,
) -> str | None:
  """Returns what clients must give; None lets all in.

  Raises:
    ValueError: other machines could ask without one, it is given twice, or it
      is too short.
  """
  given = {
    "--token": token,
    "--token_file": token_file and pathlib.Path(token_file).read_text().strip(),
    TOKEN: os.environ.get(TOKEN),
  }
  given = {name: x for name, x in given.items() if x is not None}
  if len(given) > 1:
    raise ValueError(f"{' and '.join(given)} are given, expected one of them")
  for name, found in given.items():
    if len(found) < 8 or not found.isascii() or not found.isprintable():
      raise ValueError(f"{name}: expected 8 or more letters, digits and signs")
    return found
  if host not in limits.LOOPBACK and not insecure:
    raise ValueError(
      f"--host {host}: other machines can reach it, expected --token, "
      f"--token_file or {TOKEN}, or --insecure to let everybody ask"
    )
  return None


def read_adapters(texts: Sequence[str]) -> dict[str, str]:
  """Returns name -> path of what --adapter gives.

  Raises:
    ValueError: a text is not of the form name=path, or a name is there twice.
  """
  found = {}
  for text in texts:
    name, _, path = text.partition("=")
    if not name or not path or name in found:
      raise ValueError(f"--adapter {text}: expected name=path, each name once")
    found[name] = path
  return found


def serve(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  *,
  adapter: Sequence[str] = (),
  name: str | None = None,
  quantize: str | None = None,
  dtype: str | None = None,
  codec: epath.PathLike | None = None,
  places: int = 8,
  max_prompt: int | None = None,
  max_tokens: int = 256,
  max_waiting: int = 64,
  deadline: float = 60.0,
  host: str = "127.0.0.1",
  port: int = 8000,
  token: str | None = None,
  token_file: epath.PathLike | None = None,
  insecure: bool = False,
  fetch_images: str = "",
  frames: str | None = None,
) -> None:
  """Serves until SIGTERM or Ctrl-C.

  Arguments are the options of the command line; `--help` explains them.

  Raises:
    ValueError: an option does not fit the others, or a file the model.
  """
  if frames and not _SITES.fullmatch(frames):
    raise ValueError(
      f'--frames "{frames}": expected sites such as https://huggingface.co'
    )
  token = read_token(host, token, token_file, insecure)
  paths = read_adapters(adapter)
  name = name or os.path.basename(os.path.normpath(ckpt)).removesuffix(".npz")
  if name in paths:
    raise ValueError(f"--adapter {name}: is the name of the model, see --name")
  with server.bind(host, port) as address:
    with progress.copying("reading the weights") as show:
      model, params = io.load(ckpt, dtype, quantize=quantize, progress=show)
    is_siglip = isinstance(model, siglip.Model)
    sees = not is_siglip and model.img is not None
    if is_siglip:
      tok = siglip_tokenizer.SiglipTokenizer(tokenizer)
      engine = siglip_engine.SiglipEngine(model, params, tok)
    else:
      tok = tokenizer_lib.Tokenizer(tokenizer, plain=not sees)
      next_token.check_tokenizer(tok, model, str(tokenizer))
      adapted = {}
      for key, path in paths.items():
        with progress.stage(f"reading the adapter {key}"):
          adapted[key] = adapters.load_adapter(path, model, params)
      with progress.stage("compiling"):
        engine = engine_lib.Engine(
          model,
          params,
          tok,
          adapters=adapted,
          places=places,
          max_prompt=max_prompt,
          max_tokens=max_tokens,
          max_waiting=max_waiting,
        )
        _answer_once(engine, sees)
        pieces.of(tok)  # is kept, for grammars and log-probabilities
    model_served = served.Served(
      name,
      engine,
      tok,
      sees,
      max_tokens,
      deadline=deadline,
      decode_masks=inputs.mask_decoder(codec),
      hosts=tuple(filter(None, fetch_images.lower().split(","))),
      limits=limits.Limits(request_seconds=deadline + 15),
    )
    made = server.make(model_served, host=host, token=token, frames=frames)
    made.run([address])


def _answer_once(engine, sees):
  """Waits for an answer, which shows that the engine works."""
  ends = queue.SimpleQueue()
  blank = np.full((16, 16, 3), 128, np.uint8)
  asked = request.Request(
    "caption en", (blank,) * sees, max_tokens=1, deadline=math.inf
  )
  engine.submit(asked, lambda token: None, ends.put)
  end = ends.get()
  if end.reason == "error":
    raise ValueError(f"the engine failed: {end.message}")


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument(
    "--adapter",
    action="append",
    default=[],
    metavar="NAME=PATH",
    help="LoRA weights, ours or of peft, asked as model NAME; several times",
  )
  parser.add_argument(
    "--name", help="of the model in requests; default: the name of --ckpt"
  )
  parser.add_argument("--quantize", choices=quantization.KINDS)
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--codec", help="npz of the mask codec, for masks")
  parser.add_argument(
    "--places", type=int, default=8, help="requests decoded at a time"
  )
  parser.add_argument(
    "--max_prompt",
    type=int,
    help="most positions of a prompt, those of pictures included; default: one "
    "picture and 256 tokens",
  )
  parser.add_argument(
    "--max_tokens", type=int, default=256, help="most tokens of an answer"
  )
  parser.add_argument(
    "--max_waiting", type=int, default=64, help="requests, others get 429"
  )
  parser.add_argument(
    "--deadline", type=float, default=60.0, help="seconds for an answer"
  )
  parser.add_argument("--host", default="127.0.0.1")
  parser.add_argument("--port", type=int, default=8000, help="0: any free one")
  parser.add_argument("--token", help="what clients must give")
  parser.add_argument("--token_file", help=f"with the token; or {TOKEN} is set")
  command_line.add_switch(
    parser, "insecure", "other machines may ask without a token"
  )
  parser.add_argument(
    "--fetch_images",
    default="",
    metavar="HOST,HOST",
    help="hosts from which pictures are fetched; default: none",
  )
  parser.add_argument(
    "--frames",
    metavar="SITES",
    help="that may show the page in a frame, such as https://huggingface.co; "
    "default: none",
  )
  processes.add_arguments(parser)
  args = vars(parser.parse_args())
  processes.prepare(args)
  serve(**args)


if __name__ == "__main__":
  command_line.run(main)
