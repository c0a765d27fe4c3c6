"""Feeds damaged files to every reader for so many seconds, and counts.

    python -m tests.stress.fuzz 1200 1
    python -m tests.stress.fuzz --replay npz:4711 1200 1

A case of a kind and a number makes a file, damages it and reads it. It is good
if it is read, or ends in one line (ValueError, OSError); bad if anything else
is raised, the line is several or too long, it takes more than 10 s or 2 GiB, or
ends the process. Prints each bad case and a table; ends with 1 if there is one.
"""

import collections
import contextlib
import copy
import functools
import json
import multiprocessing
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile

import numpy as np
from PIL import Image

from paligemma import init, io, messages, metrics, tree
from paligemma.checkpoints import fit, formats
from paligemma.checkpoints.lora import adapters
from paligemma.data import image as image_lib
from paligemma.data import image_files, preprocess, sources, tokenizer
from paligemma.decoding import grammar as grammar_lib
from paligemma.decoding import samplers
from paligemma.evals import predictions, scoring
from paligemma.lora import apply as lora
from paligemma.models import paligemma as paligemma_model
from scripts import import_data
from tests.trainers import tiny_config
from trainers import command_line, report, workdir

SECONDS = 10.0  # of a case
PATIENCE = 60.0  # between two messages of the worker, on a busy machine
MEMORY = 2**31  # bytes more than before the first case
LONGEST = 3000  # characters of a message
TOKENIZER = pathlib.Path("paligemma/assets/tiny_tokenizer.model")

# Values that a file may hold in the place of what is expected.
WEIRD = (
  *(None, True, 0, -1, 1, 2, 0.5, 1e308, -1e308, 2**31, 2**63, -(2**63)),
  *(10**30, float("nan"), float("inf"), float("-inf"), "nan", "1e400"),
  *("", " ", "x", "..", "../x", "/etc/passwd", "/dev/zero", "x" * 10_000),
  *("\x00", "\ud800", "\n", "\u202e", "\u0660", "<loc0000>", "<loc9999>"),
  *("https://x/y", [], {}, [[]], [None], [1, 2], [1, 2, 3, 4], ["a"]),
  *({"a": 1}, [0] * 1000),
)
# Texts that no value of JSON gives.
TEXTS = ("[" * 100_000, '{"a":' * 50_000, "\x00", "\ufeff{}", "NaN", "{'a': 1}")
CALLS = (
  (samplers.make, "nucleus(p=0.9)"),
  (samplers.make, "best_of(n=8, sampler=top_k(k=4))"),
  (metrics.make, "vqa(lower=True)"),
  (grammar_lib.make, 'boxes(["cat", "dog"], at_most=3)'),
  (grammar_lib.make, 'regex("(yes|no)( maybe){0,2}")'),
  (grammar_lib.make, 'choices("yes", "no")'),
)


def damage_bytes(rng, data):
  """Changes, adds, repeats, cuts out or cuts off some of the bytes."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 8))):
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100, 5000))
    match rng.randrange(7):
      case 0 if data:
        data[at % len(data)] ^= 1 << rng.randrange(8)
      case 1 if data:
        data[at % len(data)] = rng.choice((0, 255, 10, 34, 123))
      case 2:
        data[at:at] = rng.randbytes(size)
      case 3:
        del data[at : at + size]
      case 4:
        del data[at:]
      case 5:
        data[at:at] = data[at : at + size]
      case 6:
        number = rng.choice((0, -1, 2**31 - 1, -(2**31), 2**63 - 1))
        width = rng.choice((2, 4, 8))
        data[at : at + width] = (number % 256**width).to_bytes(width, "little")
  return bytes(data)


def damage_json(rng, value):
  """The JSON text of a value of which one or two places are changed."""
  if rng.random() < 0.03:
    return rng.choice(TEXTS).encode(errors="surrogatepass")
  holder = {"": json.loads(json.dumps(value))}
  for _ in range(rng.choice((1, 1, 2))):
    parent, key = rng.choice(list(_entries(holder)))
    match rng.randrange(5):
      case 0:
        parent[key] = copy.deepcopy(rng.choice(WEIRD))
      case 1 if parent is not holder:
        del parent[key]
      case 2 if type(parent[key]) in (int, float):
        parent[key] = parent[key] * rng.choice((-1, 0, 2, 0.3, 10**9))
      case 3 if isinstance(parent[key], str):
        parent[key] += rng.choice(("x", "\x00", "\ud800", "\n"))
      case _:
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}))
  text = json.dumps(holder[""], ensure_ascii=rng.random() < 0.5)
  data = text.encode(errors="surrogatepass")
  return damage_bytes(rng, data) if rng.random() < 0.1 else data


def _entries(holder):
  """Every (dict or list, key) below a value."""
  keys = holder if isinstance(holder, dict) else range(len(holder))
  for key in list(keys):
    yield holder, key
    if isinstance(holder[key], dict | list):
      yield from _entries(holder[key])


def damage_file(rng, path):
  """Damages the bytes or the JSON values of a file, or takes it away."""
  if rng.random() < 0.05:
    path.unlink()
    match rng.randrange(3):
      case 0:
        path.mkdir()
      case 1:
        path.symlink_to("/dev/zero")
    return
  data = path.read_bytes()
  try:
    value = json.loads(data)
  except ValueError:
    path.write_bytes(damage_bytes(rng, data))
  else:
    path.write_bytes(damage_json(rng, value))


class Fuzz:
  """Files that are right, and for each kind one way to damage and read them.

  Attributes:
    kinds: name -> function of (rng, an empty folder) that runs a case.
  """

  def __init__(self, work):
    self.work, self.right = work, work / "right"
    self.tokenizer = tokenizer.Tokenizer(TOKENIZER)
    fields = tiny_config.get_config().model.to_dict()
    self.model = paligemma_model.make(**fields | {"vocab_size": 67})
    self.shapes = init.shapes(self.model, 28)
    rng = np.random.default_rng(0)
    self.params = tree.unflatten(
      {
        name: rng.normal(0, 1, x.shape).astype("f4")
        for name, x in self.shapes.items()
      }
    )
    if not self.right.exists():
      self._write(rng)
    self.kinds = {
      "adapter": self.adapter,
      "array": self.array_header,
      "call": self.call,
      "huggingface": functools.partial(self.checkpoint, "hf"),
      "image": self.image,
      "import": self.import_coco,
      "jsonl": self.jsonl,
      "npz": functools.partial(self.checkpoint, "m.npz"),
      "orbax": functools.partial(self.checkpoint, "o"),
      "predictions": self.predictions,
      "run": self.run,
      "safetensors": self.safetensors_header,
      "tokenizer": self.tokenizer_file,
    }

  def _write(self, rng):
    folder = self.work / "making"
    folder.mkdir()
    io.save(folder / "m.npz", self.model, self.params)
    io.save(folder / "hf", self.model, self.params, format="huggingface")
    io.save(folder / "o", self.model, self.params, format="orbax")
    model, adapted = lora.enable_lora(self.model, self.params, rank=2)
    adapters.save_adapter(folder / "a.safetensors", model, adapted)
    picture = Image.fromarray(rng.integers(0, 255, (23, 31, 3), np.uint8))
    for name in ("a.png", "a.jpg", "a.webp"):
      picture.save(folder / name)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "p.png")
    folder.rename(self.right)

  def _copy(self, name, folder):
    source = self.right / name
    copy = shutil.copytree if source.is_dir() else shutil.copy
    return copy(source, folder / name)

  def _open(self, path):
    shapes = {name: x.shape for name, x in self.shapes.items()}
    for leaf in fit.fit(formats.open(path), shapes).values():
      leaf.read()

  def checkpoint(self, name, rng, folder):
    path = self._copy(name, folder)
    files = [path] if path.is_file() else list(path.rglob("*"))
    damage_file(rng, rng.choice(sorted(f for f in files if f.is_file())))
    self._open(path)

  def array_header(self, rng, folder):
    """Damages the header of an array in an npz, not the zip around it."""
    path = folder / "m.npz"
    with zipfile.ZipFile(self.right / "m.npz") as right:
      files = {name: right.read(name) for name in right.namelist()}
    name = rng.choice(sorted(files))
    size = 10 + int.from_bytes(files[name][8:10], "little")
    header = damage_bytes(rng, files[name][:size])
    files[name] = header + files[name][size:]
    with zipfile.ZipFile(path, "w") as archive:
      for member, data in files.items():
        archive.writestr(member, data)
    self._open(path)

  def safetensors_header(self, rng, folder):
    path = self._copy("hf", folder)
    file = path / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = damage_json(rng, json.loads(data[8 : 8 + size]))
    length = rng.choice((len(header),) * 4 + (0, 10**9, 2**63 - 1))
    file.write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
    self._open(path)

  def adapter(self, rng, folder):
    path = self._copy("a.safetensors", folder)
    damage_file(rng, path)
    adapters.load_adapter(path, self.model, self.params)

  def tokenizer_file(self, rng, folder):
    path = folder / "t.model"
    path.write_bytes(damage_bytes(rng, TOKENIZER.read_bytes()))
    tok = tokenizer.Tokenizer(path)
    tok.decode(tok.encode("answer en <loc0003> x\n", bos=True, eos=True))

  def image(self, rng, folder):
    del folder
    pictures = ("a.jpg", "a.png", "a.webp", "cmyk.jpg", "p.png")
    data = (self.right / rng.choice(pictures)).read_bytes()
    pixels = image_files.decode(damage_bytes(rng, data), where="x.jsonl:1")
    resize = rng.choice(list(image_lib.PREPROCESSING.values()))
    resize(pixels, (28, 28))

  def jsonl(self, rng, folder):
    self._copy("a.png", folder)
    line = {"image": "a.png", "prefix": "answer en what?", "suffix": "a cat"}
    good = json.dumps(line).encode()
    path = folder / "x.jsonl"
    path.write_bytes(good + b"\n" + damage_json(rng, line) + b"\n" + good)
    source = sources.Jsonl(path)
    make_example = preprocess.Preprocess(
      self.tokenizer, res=28, text_len=16, train=rng.random() < 0.5
    )
    for index in range(len(source)):
      make_example(source[index], np.random.default_rng(0))

  def predictions(self, rng, folder):
    path = folder / "y.jsonl"
    box = "<loc0001><loc0002><loc0300><loc0400> a"
    lines = [
      {
        "where": f"x.jsonl:{i + 1}",
        "prefix": "detect a",
        "suffix": box,
        "index": i,
        "prediction": box,
        "score": -0.5,
        "confidences": [0.5],
      }
      for i in range(3)
    ]
    texts = [json.dumps(line).encode() for line in lines]
    at = rng.randrange(3)
    texts[at] = damage_json(rng, lines[at])
    path.write_bytes(b"\n".join(texts) + b"\n")
    if rng.random() < 0.3:
      beside = folder / "y.jsonl.settings"
      beside.write_bytes(damage_json(rng, {"a": 1, "b": {"c": [1, 2]}}))
      predictions.resume(path, {"a": 1, "b": {}}, count=3, batch_size=2)
      return
    found = predictions.read(path, 3)
    name = rng.choice(sorted(set(metrics.METRICS) - {"segmentation"}))
    scoring.apply(metrics.make(name), found, lines, answer_key="suffix")

  def run(self, rng, folder):
    """Damages what a trainer finds when a run is resumed."""
    config = {"seed": 0, "train": {"ops": ["a"]}, "init": "m.npz"}
    steps = [{"step": i, "loss": 0.5, "val/exact_match": 1.0} for i in range(3)]
    files = {
      "config.json": json.dumps(config),
      "fingerprints.json": json.dumps({"init": "sha256:1"}),
      "metrics.jsonl": "\n".join(map(json.dumps, steps)),
    }
    for name, text in files.items():
      (folder / name).write_text(text)
    damage_file(rng, folder / rng.choice(list(files)))
    workdir.check_values(folder, config)
    report.drop(folder / "metrics.jsonl", 2, ("val/",))

  def import_coco(self, rng, folder):
    image = {"id": 1, "file_name": "a.png", "width": 31, "height": 23}
    box = {"bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    ids = {"id": 1, "image_id": 1, "category_id": 1}
    value = {
      "images": [image],
      "categories": [{"id": 1, "name": "cat"}],
      "annotations": [{**ids, **box, "caption": "a cat"}],
    }
    path = folder / "i.json"
    path.write_bytes(damage_json(rng, value))
    task, out = rng.choice(("detect", "caption")), folder / "out"
    import_data.import_data("coco", path, out, task=task, images=self.right)

  def call(self, rng, folder):
    """Damages the text of a sampler, a metric or a grammar."""
    del folder
    make, text = rng.choice(CALLS)
    text = damage_bytes(rng, text.encode()).decode("latin-1")
    make(text, *([self.tokenizer] if make is grammar_lib.make else []))


def run_case(fuzz, seed, kind, number):
  """Runs a case; returns its fault (None if it is good) and how it ended."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=fuzz.work))
  rng = random.Random(f"{seed} {kind} {number}")
  start = time.process_time()
  ended, problem = "read", None
  try:
    fuzz.kinds[kind](rng, folder)
  except (OSError, ValueError) as error:
    ended, text = "one line", str(error)
    if "\n" in text or len(text) > LONGEST:
      problem = f"{type(error).__name__} of {len(text)} characters: {text:.300}"
  except BaseException:
    problem = traceback.format_exc().strip()[-2000:]
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  if (seconds := time.process_time() - start) > SECONDS:
    problem = problem or f"took {seconds:.1f} s"
  return problem, ended


def work_off(connection, work, seed, number):
  """Runs cases from a number on, all kinds in turn, and sends how they end."""
  with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
    fuzz = Fuzz(work)
    kinds = list(fuzz.kinds)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[5])
    limit = used * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    while True:
      kind = kinds[number % len(kinds)]
      connection.send((kind, number, None, "begun"))
      connection.send((kind, number, *run_case(fuzz, seed, kind, number)))
      number += 1


def fuzz(seconds, seed, work):
  """Runs cases for so long; returns {kind: Counter of how they ended}."""
  counts = collections.defaultdict(collections.Counter)
  context = multiprocessing.get_context("spawn")
  number, end = 0, time.monotonic() + seconds

  def count(kind, number, problem, ended):
    counts[kind]["bad" if problem else ended] += 1
    if problem:
      print(f"{kind}:{number}: {problem}", flush=True)

  while time.monotonic() < end:  # with another worker where one has died
    ours, theirs = context.Pipe()
    worker = context.Process(
      target=work_off, args=(theirs, work, seed, number), daemon=True
    )
    worker.start()
    theirs.close()
    kind, ended = None, "begun"
    try:
      while ended == "begun" or time.monotonic() < end:
        # The first message comes when all is imported.
        if not ours.poll(PATIENCE if kind else 10 * PATIENCE):
          count(kind, number, f"no end after {PATIENCE:.0f} s", None)
          break
        kind, number, problem, ended = ours.recv()
        if ended != "begun":
          count(kind, number, problem, ended)
    except EOFError:
      count(kind, number, "ended the process", None)
    number += 1
    worker.kill()
    worker.join()
  return counts


def main():
  parser = command_line.parser(__doc__)
  parser.add_argument("seconds", type=float)
  parser.add_argument("seed", type=int)
  parser.add_argument("--replay", metavar="KIND:NUMBER", help="this case alone")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix="fuzz") as work:
    work = pathlib.Path(work)
    if args.replay:
      kind, _, number = args.replay.partition(":")
      problem, ended = run_case(Fuzz(work), args.seed, kind, int(number))
      print(problem or ended)
      return
    counts = fuzz(args.seconds, args.seed, work)
  counts = dict(sorted(counts.items()))
  counts["all"] = sum(counts.values(), collections.Counter())
  columns = ("read", "one line", "bad")
  rows = [("kind", "cases", *columns)]
  for kind, count in counts.items():
    numbers = (count.total(), *(count[column] for column in columns))
    rows.append((str(kind), *map(str, numbers)))
  print("\n".join(messages.aligned(rows)))
  if counts["all"]["bad"]:
    sys.exit(1)


if __name__ == "__main__":
  command_line.run(main)
