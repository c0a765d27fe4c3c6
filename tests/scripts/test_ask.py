"""Questions in a terminal: answers, commands, history, and pipes."""

import contextlib
import io
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from paligemma import api
from paligemma import io as checkpoint_io
from paligemma.data import objects
from paligemma.data import tokenizer as tokenizer_lib
from scripts import ask as command

SIZE = 113, 127  # of a picture, height and width


@pytest.fixture(scope="module")
def options(tiny):
  return {
    "ckpt": tiny.weights,
    "tokenizer": tiny.tokenizer,
    "max_decode_len": 3,
  }


@pytest.fixture(scope="module")
def model(options, tiny):
  made = command.Model(**options)
  made.look(tiny.folder / "3.png")
  return made


@pytest.fixture
def found(model, tiny, monkeypatch):
  """A conversation with a model that finds two objects in any picture."""
  model.look(tiny.folder / "3.png")
  objects = [
    {"label": "cat\x1b[2J", "box": (1.0, 2.4, 9.0, 21.0), "score": 0.93},
    {"label": "dog", "box": (0.0, 10.0, 17.0, 31.0), "score": 0.2},
  ]
  answer = command.Answer("<loc0001> ...", objects)
  monkeypatch.setattr(model, "ask", lambda prompt, on_text: answer)
  return Talk(model)


class Talk(command.Conversation):
  """A conversation whose answers are lines."""

  def answer(self, line):
    written = []
    super().answer(line, written.append)
    text = "".join(written)
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


def test_answers_are_those_of_generate(model, tiny):
  """And a picture that is asked about again is not embedded again."""
  loaded = checkpoint_io.load(tiny.weights)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer)
  before, seen = model._engine.counts(), set()
  for image in ("3.png", "5.png"):
    path = tiny.folder / image
    model.look(path)
    for prompt in ("what digit", "is this\n"):
      (expected,) = api.generate(*loaded, tok, path, prompt, max_decode_len=3)
      pieces = []
      assert model.ask(prompt, pieces.append).text == expected
      assert "".join(pieces) == expected
      assert len(pieces) > 1
      seen.add(expected)
  assert len(seen) == 4
  assert model._engine.counts()["image_misses"] - before["image_misses"] == 2


def test_objects_have_boxes_in_pixels_and_scores(tmp_path):
  """Of the model that knows digits in pictures."""
  path = tmp_path / "x.png"
  height, width = SIZE
  picture = Image.new("RGB", (width, height))
  draw = ImageDraw.Draw(picture)
  draw.text((40, 24), "3", "white", ImageFont.load_default(60))
  picture.save(path)
  model = command.Model(
    "paligemma/assets/tiny_scenes.npz",
    "paligemma/assets/tiny_tokenizer.model",
    codec="paligemma/assets/tiny_mask_codec.npz",
    max_decode_len=24,
  )
  model.look(path)
  text, (found,) = model.ask("segment 3", lambda piece: None)
  (expected,) = objects.parse(text, SIZE)
  assert (found["label"], found["box"]) == ("3", expected["box"])
  assert 0.5 < found["score"] <= 1
  inside = np.asarray(picture)[found["mask"]].mean()
  assert inside > 2 * np.asarray(picture)[~found["mask"]].mean()


def test_objects_are_a_table(found):
  assert found.answer("detect cat") == [
    "label       left  top  right  bottom  score",
    "cat\\x1b[2J  2     1    21     9       0.93",
    "dog         10    0    31     17      0.20",
  ]
  found._min_score = 0.5
  assert len(found.answer("detect cat")) == 2


def test_a_text_is_written_as_it_comes(model, monkeypatch):
  """And what would steer the terminal is escaped."""

  def ask(prompt, on_text):
    for piece in (" ", "a\x1b[31m", "", "\nb", "\x07"):
      on_text(piece)
    return command.Answer(" a\x1b[31m\nb\x07", [])

  monkeypatch.setattr(model, "ask", ask)
  written = []
  command.Conversation(model).answer("caption en", written.append)
  assert written == [" a\\x1b[31m", "", "\nb", "\\x07", "\n"]


def test_objects_are_no_text(model, monkeypatch):
  """Their locations are not written, unless they are malformed."""

  def ask(prompt, on_text):
    for piece in ("<loc0001>", " cat"):
      on_text(piece)
    found = [{"label": "cat", "box": (0.0, 0.0, 9.0, 9.0), "score": 0.5}]
    return command.Answer("<loc0001> cat", found if "cat" in prompt else [])

  monkeypatch.setattr(model, "ask", ask)
  assert len(Talk(model).answer("detect cat")) == 2
  assert Talk(model).answer("detect dog") == ["<loc0001> cat"]
  assert len(Talk(model, min_score=0.6).answer("detect cat")) == 1  # the head


def test_the_last_answer_is_drawn(found, model, tmp_path):
  path = str(tmp_path / "out.png")
  with pytest.raises(ValueError, match="there is no answer yet to draw"):
    found.answer(f":draw {path}")
  found.answer("detect cat")
  assert found.answer(f":draw  {path}") == [f"{path}: written"]
  plain = api.draw(model.pixels, [])
  with Image.open(path) as drawn:
    assert drawn.size == plain.size
    assert not np.array_equal(drawn, plain)
  with pytest.raises(
    ValueError, match=r'"a.gif": expected a name that ends in .png, .jpg, .jpeg'
  ):
    found.answer(":draw a.gif")
  with pytest.raises(ValueError, match=r"3.png: is the picture itself; give"):
    found.answer(f":draw {model.path}")


def test_another_picture(found, model, tiny):
  path = tiny.folder / "5.png"
  found.answer("detect cat")
  assert found.answer(f":image {path}") == [f"{path}: 31x19 pixels"]
  assert model.pixels.shape == (19, 31, 3)
  with pytest.raises(ValueError, match="no answer yet"):  # to this picture
    found.answer(":draw out.png")
  with pytest.raises((OSError, ValueError), match=r"none\.png"):
    found.answer(":image none.png")
  assert model.path == str(path)
  with pytest.raises(
    ValueError, match=r'unknown command ":imgae".* Did you mean ":image"'
  ):
    found.answer(":imgae x.png")
  assert [line.split()[0] for line in found.answer(":help")] == [
    ":image",
    ":draw",
    ":help",
  ]


def test_lines_of_a_pipe(tiny, options, monkeypatch, capsys):
  lines = "what digit\n\n:image none.png\n  is this <image>\nis this\n"
  monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
  path = tiny.folder / "3.png"
  assert command.ask(path, **options) == 2
  out, err = capsys.readouterr()
  loaded = checkpoint_io.load(tiny.weights)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer)
  expected = api.generate(
    *loaded, tok, [path] * 2, ["what digit", "is this"], max_decode_len=3
  )
  assert out.splitlines() == expected
  errors = [line for line in err.splitlines() if line.startswith("error: ")]
  assert len(errors) == 2
  assert "none.png" in errors[0]
  assert "<image> stands within the prompt" in errors[1]


def test_one_question_as_a_command(tiny, tmp_path):
  drawn = tmp_path / "out.jpg"
  arguments = (
    *(tiny.folder / "3.png", "what digit"),
    *("--ckpt", tiny.weights, "--tokenizer", tiny.tokenizer),
    *("--max_decode_len", 3, "--draw", drawn),
  )
  loaded = checkpoint_io.load(tiny.weights)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer)
  (expected,) = api.generate(
    *loaded, tok, arguments[0], "what digit", max_decode_len=3
  )
  assert tiny.run("scripts.ask", *arguments) == f"{expected}\n"
  with Image.open(drawn) as picture:
    assert picture.format == "JPEG"


def test_mistakes_are_told_before_the_weights_are_read(tiny, options):
  path = tiny.folder / "3.png"
  with pytest.raises(ValueError, match=r"--min_score 2: expected a number in"):
    command.ask(path, **options, min_score=2)
  with pytest.raises(ValueError, match=r'"x": expected a name that ends in'):
    command.ask(path, **options, draw="x")
  with pytest.raises(ValueError, match="is a Gemma without image tower"):
    command.Model(**options | {"ckpt": gemma_alone(tiny)})


def gemma_alone(tiny):
  path = tiny.folder / "gemma.npz"
  with np.load(tiny.weights) as arrays:
    kept = {name: x for name, x in arrays.items() if "llm/" in name}
  np.savez(path, **kept)
  return path


def test_history_in_a_terminal(tmp_path, request):
  """A line of one conversation is found in the next; old ones are dropped."""
  code = (
    "import readline, sys\n"
    "from scripts import ask\n"
    "ask.HISTORY, ask._REMEMBERED = sys.argv[1], 3\n"
    "for _ in range(2):\n"
    "  readline.clear_history()\n"
    "  for line in ask._typed(): print('got', line)\n"
  )
  history = tmp_path / "folder/history"
  mine, its = pty.openpty()
  child = subprocess.Popen(
    [sys.executable, "-c", code, history],
    stdin=its,
    stdout=its,
    stderr=its,
    env={**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null"},
  )
  os.close(its)
  request.addfinalizer(child.wait)
  request.addfinalizer(child.kill)

  def reply(keys, end=b"\n> "):
    """Types, and returns what is printed up to the next prompt or the end."""
    os.write(mine, keys)
    said = b""
    with contextlib.suppress(OSError):  # Linux, when the other end is closed
      while not said.endswith(end):
        assert select.select([mine], [], [], 100)[0], said
        said += os.read(mine, 1000)
    return said

  assert b"Ctrl-D ends" in reply(b"")
  for line in (b"one", b"two", b"three", b"four"):
    assert b"got " + line in reply(line + b"\n")
  assert b"Ctrl-D ends" in reply(b"\x04")
  assert history.read_text().split() == ["two", "three", "four"]
  assert b"got three" in reply(b"\x10\x10\n")  # as the arrow upwards, twice
  reply(b"no", end=b"no")
  # Before it waits for a key, Python loses a Ctrl-C until the next one comes.
  state = pathlib.Path(f"/proc/{child.pid}/stat")
  while child.poll() is None and state.read_text().split()[2] != "S":
    time.sleep(0.01)
  child.send_signal(signal.SIGINT)  # Ctrl-C drops a line
  assert b"got" not in reply(b"")
  assert b"got five" in reply(b"five\n")
  assert b"got" not in reply(b"\x04")
  assert child.wait() == 0
  os.close(mine)
  assert history.read_text().split()[-1] == "five"
