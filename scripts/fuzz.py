"""Feeds damaged files to every reader for so many seconds, and counts.

    python -m scripts.fuzz 1200 1
    python -m scripts.fuzz --replay npz:4711 1200 1

A case of a kind and a number makes a file, damages it and reads it. It is good
if it is read, or ends in one line (ValueError, OSError); bad if anything else
is raised, the line is several or too long, it takes more than 10 s or 2 GiB, or
ends the process. Prints each bad case and a table; ends with 1 if there is one.
"""

import argparse
import collections
import contextlib
import copy
import json
import multiprocessing
import multiprocessing.connection
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zipfile
from typing import Any

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
from trainers import command_line, report, workdir

SECONDS = 10.0  # of a case
PATIENCE = 60.0  # without a word of the worker, on a machine that is busy
MEMORY = 2**31  # bytes more than before the first case
LONGEST = 3000  # characters of a message
TOKENIZER = "paligemma/assets/tiny_tokenizer.model"

# Values that a file may hold in the place of what is expected.
WEIRD = (
  *(
    None,
    True,
    0,
    -1,
    1,
    2,
    0.5,
    1e308,
    -1e308,
    2**31,
    2**63,
    -(2**63),
    10**30,
  ),
  *(float("nan"), float("inf"), float("-inf"), "nan", "1e400", "\u0660"),
  *("", " ", "x", "..", "../x", "/etc/passwd", "/dev/zero", "x" * 10_000),
  *("\x00", "\ud800", "\n", "\u202e", "<loc0000>", "<loc9999>", "https://x/y"),
  *([], {}, [[]], [None], [1, 2], [1, 2, 3, 4], ["a"], {"a": 1}, [0] * 1000),
)
# Texts that no value of JSON gives.
TEXTS = ("[" * 100_000, '{"a":' * 50_000, "\x00", "\ufeff{}", "NaN", "{'a': 1}")


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
  """Bytes with some of them changed, added, repeated, cut out or cut off."""
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


def damage_json(rng: random.Random, value: Any) -> Any:
  """A JSON text as bytes in which one or two values are others."""
  if rng.random() < 0.03:
    return rng.choice(TEXTS).encode(errors="surrogatepass")
  holder = {"": json.loads(json.dumps(value))}
  for _ in range(rng.choice((1, 1, 2))):
    parent, key = rng.choice(list(_places(holder)))
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
    if "" not in holder:
      holder[""] = None
  text = json.dumps(holder[""], ensure_ascii=rng.random() < 0.5)
  data = text.encode(errors="surrogatepass")
  return damage_bytes(rng, data) if rng.random() < 0.1 else data


def _places(holder):
  """Every (dict or list, key) below a value."""
  keys = holder if isinstance(holder, dict) else range(len(holder))
  for key in list(keys):
    yield holder, key
    if isinstance(holder[key], dict | list):
      yield from _places(holder[key])


def damage_file(rng: random.Random, path: pathlib.Path) -> None:
  """Damages a file as what it is, or takes it away."""
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
  """Files that are right, and one way to damage and read them a kind."""

  def __init__(self, work):
    self.work, self.right = work, work / "right"
    self.tokenizer = tokenizer.Tokenizer(TOKENIZER)
    self.model = paligemma_model.make(
      variant="paligemma_tiny",
      vocab_size=67,
      img=dict(width=12, depth=2, mlp_dim=20, num_heads=2),
      llm=dict(
        width=16,
        depth=2,
        mlp_dim=22,
        num_heads=2,
        num_kv_heads=1,
        head_dim=10,
      ),
    )
    rng = np.random.default_rng(0)
    shapes = init.shapes(self.model, 28)
    self.params = tree.unflatten(
      {n: rng.normal(0, 1, x.shape).astype("f4") for n, x in shapes.items()}
    )
    if not self.right.exists():
      self._write(rng)
    self.kinds = {
      name.removeprefix("kind_"): getattr(self, name)
      for name in sorted(dir(self))
      if name.startswith("kind_")
    }

  def _write(self, rng):
    folder = self.work / "making"
    folder.mkdir()
    for name, format in (
      ("m.npz", None),
      ("hf", "huggingface"),
      ("o", "orbax"),
    ):
      io.save(folder / name, self.model, self.params, format=format)
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
    copy(source, folder / name)
    return folder / name

  def _open(self, path):
    checkpoint = formats.open(path)
    shapes = init.shapes(self.model, 28)
    for leaf in fit.fit(
      checkpoint, {n: x.shape for n, x in shapes.items()}
    ).values():
      leaf.read()

  def _checkpoint(self, rng, folder, name):
    path = self._copy(name, folder)
    files = [path] if path.is_file() else list(path.rglob("*"))
    damage_file(rng, rng.choice(sorted(f for f in files if f.is_file())))
    self._open(path)

  def kind_npz(self, rng: random.Random, folder: pathlib.Path) -> None:
    self._checkpoint(rng, folder, "m.npz")

  def kind_array(self, rng: random.Random, folder: pathlib.Path) -> None:
    """The header of an array in an npz, which is whole as a zip."""
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

  def kind_huggingface(self, rng: random.Random, folder: pathlib.Path) -> None:
    self._checkpoint(rng, folder, "hf")

  def kind_orbax(self, rng: random.Random, folder: pathlib.Path) -> None:
    self._checkpoint(rng, folder, "o")

  def kind_safetensors(self, rng: random.Random, folder: pathlib.Path) -> None:
    """The header of the file, which says where what is."""
    path = self._copy("hf", folder)
    file = path / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = damage_json(rng, json.loads(data[8 : 8 + size]))
    length = rng.choice((len(header),) * 4 + (0, 10**9, 2**63 - 1))
    file.write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
    self._open(path)

  def kind_adapter(self, rng: random.Random, folder: pathlib.Path) -> None:
    path = self._copy("a.safetensors", folder)
    damage_file(rng, path)
    adapters.load_adapter(path, self.model, self.params)

  def kind_tokenizer(self, rng: random.Random, folder: pathlib.Path) -> None:
    path = folder / "t.model"
    data = pathlib.Path(TOKENIZER).read_bytes()
    path.write_bytes(damage_bytes(rng, data))
    tok = tokenizer.Tokenizer(path)
    tok.decode(tok.encode("answer en <loc0003> x\n", bos=True, eos=True))

  def kind_image(self, rng: random.Random, folder: pathlib.Path) -> None:
    del folder
    pictures = sorted(
      p for p in self.right.iterdir() if p.name[1:] in _PICTURES
    )
    data = damage_bytes(rng, rng.choice(pictures).read_bytes())
    pixels = image_files.decode(data, where="x.jsonl:1")
    image_lib.PREPROCESSING[rng.choice(list(image_lib.PREPROCESSING))](
      pixels, (28, 28)
    )

  def kind_jsonl(self, rng: random.Random, folder: pathlib.Path) -> None:
    self._copy("a.png", folder)
    line = {"image": "a.png", "prefix": "answer en what?", "suffix": "a cat"}
    good = json.dumps(line).encode()
    path = folder / "x.jsonl"
    path.write_bytes(good + b"\n" + damage_json(rng, line) + b"\n" + good)
    source = sources.Jsonl(path)
    make_row = preprocess.Preprocess(
      self.tokenizer, res=28, text_len=16, train=rng.random() < 0.5
    )
    for index in range(len(source)):
      make_row(source[index], np.random.default_rng(0))

  def kind_predictions(self, rng: random.Random, folder: pathlib.Path) -> None:
    path = folder / "y.jsonl"
    lines = [
      {
        "where": f"x.jsonl:{i + 1}",
        "prefix": "detect a",
        "suffix": "<loc0001><loc0002><loc0300><loc0400> a",
        "index": i,
        "prediction": "<loc0001><loc0002><loc0300><loc0400> a",
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

  def kind_run(self, rng: random.Random, folder: pathlib.Path) -> None:
    """What a trainer finds of an earlier start."""
    config = {"seed": 0, "train": {"ops": ["a"]}, "init": "m.npz"}
    steps = [{"step": i, "loss": 0.5, "val/exact_match": 1.0} for i in range(3)]
    name = rng.choice(("config.json", "fingerprints.json", "metrics.jsonl"))
    for file, value in (
      ("config.json", config),
      ("fingerprints.json", {"init": "sha256:1"}),
    ):
      (folder / file).write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    damage_file(rng, folder / name)
    workdir.check_values(folder, config)
    report.drop(folder / "metrics.jsonl", 2, ("val/",))

  def kind_import(self, rng: random.Random, folder: pathlib.Path) -> None:
    box = {
      "image_id": 1,
      "category_id": 1,
      "bbox": [1, 2, 10, 12],
      "iscrowd": 0,
    }
    image = {"id": 1, "file_name": "a.png", "width": 31, "height": 23}
    categories = [{"id": 1, "name": "cat"}]
    value = {
      "images": [image],
      "categories": categories,
      "annotations": [{"id": 1, "area": 120, **box, "caption": "a cat"}],
    }
    path = folder / "i.json"
    path.write_bytes(damage_json(rng, value))
    import_data.import_data(
      "coco",
      path,
      folder / "out",
      task=rng.choice(("detect", "caption")),
      images=self.right,
    )

  def kind_call(self, rng: random.Random, folder: pathlib.Path) -> None:
    """A sampler, a metric or a grammar as text."""
    del folder
    make, text = rng.choice(_CALLS)
    text = damage_bytes(rng, text.encode()).decode("latin-1")
    if make is grammar_lib.make:
      make(text, self.tokenizer)
    else:
      make(text)


_PICTURES = (".png", ".jpg", ".webp", "myk.jpg")
_CALLS = (
  (samplers.make, "nucleus(p=0.9)"),
  (samplers.make, "best_of(n=8, sampler=top_k(k=4))"),
  (metrics.make, "vqa(lower=True)"),
  (grammar_lib.make, 'boxes(["cat", "dog"], at_most=3)'),
  (grammar_lib.make, 'regex("(yes|no)( maybe){0,2}")'),
  (grammar_lib.make, 'choices("yes", "no")'),
)


def run_case(
  fuzz: Fuzz, seed: int, kind: str, number: int
) -> tuple[str | None, str]:
  """One case; what is bad about it, None if nothing is, and how it ended."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=fuzz.work))
  rng = random.Random(f"{seed} {kind} {number}")
  start = time.process_time()
  ended = "read"
  problem = None
  try:
    fuzz.kinds[kind](rng, folder)
  except (OSError, ValueError) as error:
    ended, text = "one line", str(error)
    if "\n" in text or len(text) > LONGEST:
      problem = f"{type(error).__name__} of {len(text)} characters: {text:.300}"
  except BaseException:
    problem = traceback.format_exc().strip()
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  seconds = time.process_time() - start
  if seconds > SECONDS:
    problem = problem or f"took {seconds:.1f} s"
  return problem and problem[-2000:], ended


def work_off(
  connection: multiprocessing.connection.Connection,
  work: pathlib.Path,
  seed: int,
  first: int,
) -> None:
  """Runs cases from a number on, all kinds in turn, and says how they ended."""
  with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
    fuzz = Fuzz(work)
    kinds = list(fuzz.kinds)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[5])
    limit = used * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    number = first
    while True:
      kind = kinds[number % len(kinds)]
      connection.send((kind, number, None, "begun"))
      connection.send((kind, number, *run_case(fuzz, seed, kind, number)))
      number += 1


def fuzz(
  seconds: float, seed: int, work: pathlib.Path
) -> dict[str, collections.Counter]:
  """Runs cases for so long; {kind: Counter of how they ended}."""
  counts = collections.defaultdict(collections.Counter)
  context = multiprocessing.get_context("spawn")
  number, end = 0, time.monotonic() + seconds
  while time.monotonic() < end:
    ours, theirs = context.Pipe()
    worker = context.Process(
      target=work_off, args=(theirs, work, seed, number), daemon=True
    )
    worker.start()
    theirs.close()
    kind, problem = None, None
    try:
      # The first word comes when all is imported.
      while ours.poll(PATIENCE if kind else 10 * PATIENCE):
        kind, number, problem, ended = ours.recv()
        if ended != "begun":
          counts[kind]["bad" if problem else ended] += 1
          if problem:
            print(f"{kind}:{number}: {problem}", flush=True)
          number += 1
          if time.monotonic() > end:
            break
      else:
        counts[kind]["bad"] += 1
        print(f"{kind}:{number}: no end after {PATIENCE:.0f} s", flush=True)
        number += 1
    except EOFError:
      counts[kind]["bad"] += 1
      print(f"{kind}:{number}: ended the process", flush=True)
      number += 1
    worker.kill()
    worker.join()
  return counts


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
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
  rows = [("kind", "cases", "read", "one line", "bad")]
  total = collections.Counter()
  for kind, count in sorted(counts.items()):
    total += count
    rows.append(_row(kind, count))
  print("\n".join(messages.aligned([*rows, _row("all", total)])))
  if total["bad"]:
    sys.exit(1)


def _row(kind, count):
  each = (count.total(), count["read"], count["one line"], count["bad"])
  return (str(kind), *map(str, each))


if __name__ == "__main__":
  command_line.run(main)
