"""Measures a server of the tiny model under load.

    python -m tests.stress.load --clients 16 --seconds 60

Asks `paligemma.generate` one prompt after the other, then a server of
`scripts.serve` with so many clients at a time, then generate again, about
pictures that were never seen before. Prints latencies, answers per
second, and the server's memory over time; ends with 1 if an answer is lost or
memory grows by more than 5 % after the first quarter.

--wide is the tiny model with a decoder of 178 million random parameters, which
is bound by memory, as those of real models are, and by 32 tokens an answer.
--again asks about the same 50 pictures per client, so that the cache of their
embeddings, 256 MiB, does not grow while memory is watched.
--address measures another server of OpenAI's API in the place of ours, such as
`transformers serve`; --write makes the folder that it serves.
"""

import asyncio
import base64
import functools
import io
import itertools
import sys
import tempfile
import time

import httpx
import numpy as np
from PIL import Image, ImageDraw

import paligemma
from paligemma import init
from paligemma.checkpoints import npz
from paligemma.models import paligemma as paligemma_model
from tests.stress import hostile
from trainers import command_line

ASSETS = "paligemma/assets"
PROMPT = "caption en"
WIDE = dict(width=1024, depth=12, mlp_dim=4096, num_heads=8, head_dim=128)
TOKENS = 32
SEEN = 50  # pictures of a client, with --again
MOST_GROWTH = 1.05


def pictures(seed):
  """Yields other drawn pictures without end."""
  rng = np.random.default_rng(seed)
  while True:
    picture = Image.new("RGB", (90, 70), tuple(rng.integers(256, size=3)))
    x, y = rng.integers(5, 30, 2).tolist()
    colour = tuple(rng.integers(256, size=3).tolist())
    ImageDraw.Draw(picture).ellipse((x, y, x + 35, y + 30), fill=colour)
    yield picture


def one_by_one(load, seconds):
  """Answers per second of `generate`, one prompt after the other."""
  model, params, tok = load
  seen = pictures(time.time_ns())
  ask = functools.partial(
    paligemma.generate, model, params, tok, max_decode_len=TOKENS
  )
  ask([next(seen)], PROMPT)  # compiles
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    ask([next(seen)], PROMPT)
    count += 1
  return count / (time.perf_counter() - start)


async def many(address, name, clients, seconds, process=None, again=False):
  """Latencies of all answers, errors, and memory in MiB once a second."""
  latencies, errors, memory = [], [], []
  until = time.perf_counter() + seconds

  async def client(i: int) -> None:
    async with httpx.AsyncClient(timeout=120) as http:
      seen = pictures(i + time.time_ns())
      if again:
        seen = itertools.cycle(itertools.islice(seen, SEEN))
      for picture in seen:
        begin = time.perf_counter()
        if begin > until:
          return
        answer = await http.post(
          f"{address}/v1/chat/completions", json=_asked(name, picture)
        )
        if answer.status_code == 200:
          latencies.append(time.perf_counter() - begin)
        else:
          errors.append(answer.text)

  async def watch() -> None:
    while process is not None:
      memory.append(hostile.memory(process)[0])
      await asyncio.sleep(1)

  watching = asyncio.ensure_future(watch())
  await asyncio.gather(*map(client, range(clients)))
  watching.cancel()
  return latencies, errors, memory


def _asked(name, picture):
  file = io.BytesIO()
  picture.save(file, "PNG")
  uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
  content = [
    {"type": "image_url", "image_url": {"url": uri}},
    {"type": "text", "text": PROMPT},
  ]
  return {
    "model": name,
    "messages": [{"role": "user", "content": content}],
    "max_tokens": TOKENS,
    "temperature": 0,
  }


def report(what, latencies, errors, seconds):
  """Prints latencies; returns answers per second."""
  rate = len(latencies) / seconds
  p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
  print(
    f"{what}: {rate:.3g} answers/s, p50 {p50 * 1e3:.0f} ms, "
    f"p95 {p95 * 1e3:.0f}, p99 {p99 * 1e3:.0f}, {len(errors)} errors"
  )
  print(*errors[:3], sep="\n", end="")
  return rate


def write_wide(path: str) -> None:
  """Writes the tiny model with a larger decoder, without training."""
  model = paligemma_model.make("paligemma_tiny", llm=WIDE)
  rng = np.random.default_rng(0)
  npz.save(
    path,
    {
      name: rng.normal(0, 0.02, leaf.shape).astype(np.float32)
      for name, leaf in init.shapes(model, 56).items()
    },
  )


def measure(clients: int, seconds: float, ckpt: str, again: bool) -> bool:
  """Compares a server with one-by-one; returns whether nothing was wrong."""
  tok = paligemma.Tokenizer(f"{ASSETS}/tiny_tokenizer.model")
  load = *paligemma.load(ckpt), tok
  alone = min(seconds / 2, 30)
  rates = [one_by_one(load, alone)]
  server, address = hostile.start("--places", str(clients), ckpt=ckpt)
  try:
    asyncio.run(many(address, "tiny", clients, 2))
    latencies, errors, memory = asyncio.run(
      many(address, "tiny", clients, seconds, server.pid, again)
    )
  finally:
    server.terminate()
    server.wait(60)
  rates.append(one_by_one(load, alone))
  rate = report(f"{clients} clients", latencies, errors, seconds)
  print(f"one by one: {rates[0]:.3g} and {rates[1]:.3g} answers/s")
  print(f"times as many: {rate / max(rates):.2f}")
  quarter = len(memory) // 4
  settled = memory[quarter]
  shown = ", ".join(f"{x:.0f}" for x in memory[:: max(len(memory) // 12, 1)])
  print(f"memory in MiB: {shown}")
  return not errors and max(memory[quarter:]) <= MOST_GROWTH * settled


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--clients", type=int, default=16)
  parser.add_argument("--seconds", type=float, default=60)
  command_line.add_switch(parser, "wide", "a larger decoder")
  command_line.add_switch(parser, "again", "about the same pictures")
  parser.add_argument("--address", help="of another server, http://...")
  parser.add_argument("--name", default="tiny", help="of its model")
  parser.add_argument("--write", metavar="FOLDER", help="for transformers")
  args = parser.parse_args()
  if args.write:
    tok = paligemma.Tokenizer(f"{ASSETS}/tiny_tokenizer.model")
    paligemma.save(
      args.write,
      *paligemma.load(f"{ASSETS}/tiny.npz"),
      format="huggingface",
      tokenizer=tok,
    )
  elif args.address:
    found = asyncio.run(
      many(args.address, args.name, args.clients, args.seconds)
    )
    report(
      f"{args.clients} clients of {args.address}", *found[:2], args.seconds
    )
  else:
    with tempfile.TemporaryDirectory() as folder:
      ckpt = f"{ASSETS}/tiny.npz"
      if args.wide:
        ckpt = f"{folder}/wide.npz"
        write_wide(ckpt)
      went_well = measure(args.clients, args.seconds, ckpt, args.again)
    sys.exit(not went_well)


if __name__ == "__main__":
  command_line.run(main)
