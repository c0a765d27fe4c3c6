"""Asks a checkpoint about a picture, once or in a conversation.

    python -m scripts.ask photo.jpg "detect cat ; dog" --ckpt runs/mine \
      --tokenizer tokenizer.model --draw found.png

An answer with boxes is shown as a table, in pixels of the picture. Without a
prompt, one is read from each line of a pipe, or from a terminal, with a history
of earlier ones; the picture passes the image tower once, and Ctrl-C ends an
answer. Lines that begin with a colon are commands:

    :image other.jpg   asks about another picture
    :draw found.png    writes the picture with what the last answer found
    :help              shows these lines

Ctrl-D ends.
"""

import contextlib
import math
import os
import pathlib
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

from etils import epath
from PIL import Image

from paligemma import disk, io, messages, quantization, registry
from paligemma.checkpoints.lora import adapters
from paligemma.data import drawing, image_files, objects, pictures
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.metrics import confidence
from paligemma.serving import engine
from paligemma.serving.request import Request, Token
from scripts import predict
from trainers import (
  command_line,
  compilation_cache,
  gpu_memory,
  inputs,
  progress,
)
from trainers.tasks import next_token

HISTORY = "~/.cache/paligemma/ask_history"
_REMEMBERED = 1000  # lines
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


class Answer(NamedTuple):
  """What a model says about a picture.

  Attributes:
    text: as decoded.
    found: its objects, with scores, in pixels of the picture.
  """

  text: str
  found: list[objects.Object]


class Model:
  """A checkpoint that is asked about one picture at a time."""

  def __init__(
    self,
    ckpt: epath.PathLike,
    tokenizer: epath.PathLike,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: epath.PathLike | None = None,
    codec: epath.PathLike | None = None,
    max_decode_len: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ):
    """Reads the files; arguments are the options of the command line.

    Raises:
      ValueError: a file is missing or damaged, they do not fit together, or the
        checkpoint has no image tower.
    """
    if not predict.has_image_tower(ckpt):
      raise ValueError(
        f"{ckpt}: is a Gemma without image tower, expected a PaliGemma; "
        "scripts.predict asks a Gemma"
      )
    self._decode_masks = inputs.mask_decoder(codec)
    self._tok = tokenizer_lib.Tokenizer(tokenizer)
    with progress.copying("reading the weights") as show:
      model, params = io.load(
        ckpt,
        dtype,
        quantize=quantize,
        progress=show,
      )
    next_token.check_tokenizer(self._tok, model, str(tokenizer))
    if adapter is not None:
      model, params = adapters.load_adapter(adapter, model, params)
    self._settings = {
      "max_tokens": max_decode_len,
      "temperature": temperature,
      "top_p": top_p,
      "seed": seed,
    }
    self._engine = engine.Engine(
      model, params, self._tok, places=1, max_tokens=max_decode_len
    )

  def look(self, path: epath.PathLike) -> None:
    """Reads the picture that is asked about from now on.

    Raises:
      OSError, ValueError: it cannot be read; the one before stays.
    """
    self.pixels = image_files.decode(pictures.read(path), where=os.fspath(path))
    self.path = path

  def ask(self, prompt: str, on_text: Callable[[str], None]) -> Answer:
    """Answers a prompt about the picture.

    Args:
      prompt: such as "caption en".
      on_text: called with what each token adds to the answer.

    Raises:
      ValueError: the prompt spells a control token or a malformed location, or
        the device failed.
    """
    events = queue.SimpleQueue()
    asked = Request(prompt, (self.pixels,), deadline=math.inf, **self._settings)
    cancel = self._engine.submit(asked, events.put, events.put)
    tokens = []
    try:
      while isinstance(event := events.get(), Token):
        tokens.append(event)
        on_text(event.text)
    finally:
      cancel()
    if event.reason == "error":
      raise ValueError(event.message)
    scores = confidence.of_boxes(
      self._tok.pieces([token.id for token in tokens]),
      [token.log_prob for token in tokens],
    )
    size = self.pixels.shape[:2]
    found = objects.parse(
      event.text, size, decode=self._decode_masks, scores=scores
    )
    return Answer(event.text, found)


class Conversation:
  """Lines of a person, and what is printed in return."""

  def __init__(self, model: Model, min_score: float = 0.0):
    """Begins with the picture that the model looks at."""
    self._model, self._min_score = model, min_score
    self._last = None

  def answer(self, line: str, write: Callable[[str], None]) -> None:
    """Carries out a command, or asks the model.

    Args:
      line: what a person wrote.
      write: called with what is to be printed. Of an answer that is no list of
        objects, this is each token as it comes.

    Raises:
      OSError, ValueError: a picture cannot be read or written, or the line is
        neither a command nor a prompt.
    """
    if line.startswith(":"):
      name, _, argument = line.partition(" ")
      command = registry.lookup(_COMMANDS, name, "command")
      write(_lines(command(self, argument.strip())))
      return
    text, written = "", 0

    def show(piece):
      nonlocal text, written
      text += piece
      if text.lstrip()[:1] not in ("", "<"):  # as objects begin
        write(_printable(text[written:]))
        written = len(text)

    whole, found = self._model.ask(line, show)
    kept = [item for item in found if item["score"] >= self._min_score]
    self._last = Answer(whole, kept)
    if written or not found:
      write(f"{_printable(whole[written:])}\n")
    if found:
      write(_lines(_table(kept)))

  def draw(self, path: str) -> list[str]:
    """Writes the picture with the last answer."""
    kind = _format(path)
    if self._last is None:
      raise ValueError(f"{path}: there is no answer yet to draw")
    if os.path.exists(path) and os.path.samefile(path, self._model.path):
      raise ValueError(f"{path}: is the picture itself; give another name")
    text, found = self._last
    picture = Image.fromarray(self._model.pixels)
    drawn = drawing.draw(picture, found, "" if found else text)
    with disk.file(path) as temporary, temporary.open("wb") as file:
      drawn.save(file, kind, quality=92)
    return [f"{path}: written"]

  def look(self, path: str) -> list[str]:
    """Turns to another picture."""
    self._model.look(path)
    self._last = None
    height, width, _ = self._model.pixels.shape
    return [f"{path}: {width}x{height} pixels"]

  def help(self, _: str = "") -> list[str]:
    """Lists the commands."""
    lines = [line for line in __doc__.splitlines() if line[4:5] == ":"]
    return [line.strip() for line in lines]


_COMMANDS = {
  ":image": Conversation.look,
  ":draw": Conversation.draw,
  ":help": Conversation.help,
}


def _format(path):
  kind = _FORMATS.get(pathlib.PurePath(path).suffix.lower())
  if kind is None:
    expected = ", ".join(_FORMATS)
    raise ValueError(f'"{path}": expected a name that ends in {expected}')
  return kind


def _table(found):
  """A line for each object, below one that names the columns."""
  rows = [("label", "left", "top", "right", "bottom", "score")]
  for item in found:
    y0, x0, y1, x1 = (f"{edge:.0f}" for edge in item["box"])
    label = messages.shown(item["label"])
    rows.append((label, x0, y0, x1, y1, f"{item['score']:.2f}"))
  return messages.aligned(rows)


def _lines(lines):
  return "".join(f"{line}\n" for line in lines)


def _printable(text):
  """A text whose lines stay; what would steer a terminal is escaped."""
  return "\n".join(messages.printable(line) for line in text.split("\n"))


@contextlib.contextmanager
def _history() -> Iterator[None]:
  """Lines of earlier conversations, and of this one for later ones."""
  try:
    import readline
  except ImportError:  # Windows
    yield
    return
  path = os.path.expanduser(HISTORY)
  with contextlib.suppress(OSError):  # the first conversation
    readline.read_history_file(path)
  readline.set_history_length(_REMEMBERED)
  try:
    yield
  finally:
    try:
      os.makedirs(os.path.dirname(path), exist_ok=True)
      readline.write_history_file(path)
    except OSError as error:
      said = messages.one_line(error)
      print(f"{said}; the history is lost", file=sys.stderr)


def _typed() -> Iterator[str]:
  """Yields what is typed, until Ctrl-D; Ctrl-C drops a line."""
  print("A prompt, or :help; Ctrl-D ends.")
  with _history():
    while True:
      try:
        yield input("> ")
      except KeyboardInterrupt:
        print()
      except EOFError:
        print()
        return


def _write(text):
  print(text, end="", flush=True)


def ask(
  image: epath.PathLike,
  prompt: str | None = None,
  *,
  draw: str | None = None,
  min_score: float = 0.0,
  **options: Any,
) -> int:
  """Prints the answer to a prompt, or to each line of standard input.

  Arguments are the options of the command line, `--help` explains them;
  **options are those of Model.

  Returns:
    How many lines of standard input could not be answered.

  Raises:
    OSError, ValueError: what is given cannot be used.
  """
  if not 0 <= min_score <= 1:
    raise ValueError(f"--min_score {min_score}: expected a number in [0, 1]")
  if draw is not None:
    _format(draw)
  model = Model(**options)
  model.look(image)
  conversation = Conversation(model, min_score)

  def answer(line):
    conversation.answer(line, _write)
    if draw is not None and not line.startswith(":"):
      print("\n".join(conversation.draw(draw)), file=sys.stderr)

  if prompt is not None:
    answer(prompt)
    return 0
  failed = 0
  for line in _typed() if sys.stdin.isatty() else sys.stdin:
    try:
      if line.strip():
        answer(line.strip())
    except (OSError, ValueError) as error:
      print(f"error: {messages.one_line(error)}", file=sys.stderr)
      failed += 1
    except KeyboardInterrupt:
      if not sys.stdin.isatty():
        raise
      print()
  return 0 if sys.stdin.isatty() else failed


def main(argv: Sequence[str] | None = None) -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("image", help="the picture")
  parser.add_argument("prompt", nargs="?", help='such as "caption en"')
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument("--adapter", help="LoRA weights, ours or of peft")
  parser.add_argument("--codec", help="npz of the mask codec, for masks")
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--quantize", choices=quantization.KINDS)
  parser.add_argument(
    "--max_decode_len", type=int, default=64, help="most tokens of an answer"
  )
  parser.add_argument(
    "--temperature",
    type=float,
    default=0.0,
    help="of the draw; 0, the default, takes the most probable token",
  )
  parser.add_argument(
    "--top_p", type=float, default=1.0, help="mass that is drawn from"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the draw")
  parser.add_argument(
    "--draw",
    metavar="FILE",
    help="written with the boxes, masks and labels of the answer",
  )
  parser.add_argument(
    "--min_score",
    type=float,
    default=0.0,
    help="in [0, 1]; boxes below it are left out; default 0",
  )
  args = parser.parse_args(argv)
  gpu_memory.configure()
  compilation_cache.configure(compilation_cache.FOLDER)
  if failed := ask(**vars(args)):
    raise ValueError(f"{failed} lines could not be answered, see above")


if __name__ == "__main__":
  command_line.run(main)
