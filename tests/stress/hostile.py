"""Sends requests that nobody means well to a server of the tiny model.

    python -m tests.stress.hostile 5000 0

Starts `scripts.serve`, opens 500 connections that say nothing, and sends so
many requests drawn from KINDS with a seed: bombs, bodies that are too large or
too slow, broken HTTP, JSON and pictures, wrong values. Each must be answered
with a 4xx, or its connection closed at its deadline; between them good requests
must be answered. Prints times and the memory of the server, and ends with 1 if
anything else happened.
"""

import asyncio
import base64
import collections
import dataclasses
import io
import json
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import httpx
import numpy as np
from PIL import Image

from scripts.serving import connections, limits
from trainers import command_line

IDLE = 500
AT_ONCE = 16
CHAT = "/v1/chat/completions"
CLOSED = 0  # in place of a status
# Deadlines of the server, and time for a busy machine.
SLOWEST = max(connections.IDLE_SECONDS, limits.Limits().body_seconds) + 10
# Kinds that wait for a deadline, and those of many bytes, are drawn less often.
RARE = 0.01


@dataclasses.dataclass(frozen=True)
class Kind:
  """A request.

  Attributes:
    make: of a random.Random, the bytes to send.
    statuses: that may answer it; CLOSED is none.
    is_rare: whether it takes long.
  """

  make: Callable[[random.Random], bytes]
  statuses: tuple[int, ...] = (400,)
  is_rare: bool = False


def raw(body=b"", path=CHAT, method="POST", **headers):
  """An HTTP request; None leaves a header out."""
  headers = {
    "host": "localhost",
    "content-type": "application/json",
    "content-length": len(body),
    **{name.replace("_", "-"): value for name, value in headers.items()},
  }
  lines = [f"{method} {path} HTTP/1.1"]
  lines += [f"{k}: {v}" for k, v in headers.items() if v is not None]
  return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def asked(**fields):
  """A chat request with other fields."""
  good = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
  return raw(json.dumps(good | fields).encode())


def task(name, **fields):
  """A request to a task."""
  good = {"image": picture(png(7, 7)), "labels": ["cat"]}
  return raw(json.dumps(good | fields).encode(), f"/v1/{name}")


def form(**structured):
  """A chat request for an answer in a form."""
  return asked(structured_outputs=structured)


def picture(data):
  """A data URI."""
  return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def about(url):
  """A chat request about a picture."""
  part = {"type": "image_url", "image_url": {"url": url}}
  return asked(messages=[{"role": "user", "content": [part]}])


def png(width, height):
  """A picture of one colour."""
  file = io.BytesIO()
  Image.new("RGB", (width, height)).save(file, "PNG")
  return file.getvalue()


def png_head(width, height, *chunks):
  """A PNG that says how large it is, and holds next to nothing."""

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  data = [chunk(b"IHDR", head), *(chunk(*x) for x in chunks)]
  data += [chunk(b"IDAT", zlib.compress(bytes(999))), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(data)


def jpeg(dice):
  """A picture of noise."""
  file = io.BytesIO()
  rng = np.random.default_rng(dice.randrange(2**32))
  noise = rng.integers(0, 256, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(file, "JPEG")
  return file.getvalue()


def spoiled(dice):
  """The beginning of a JPEG, with some bytes changed."""
  data = bytearray(jpeg(dice))
  for _ in range(dice.randrange(1, 20)):
    data[dice.randrange(4, len(data))] = dice.randrange(256)
  return bytes(data[: dice.randrange(4, len(data) - 2)])


def wrong_value(dice):
  """A field of the wrong type, or out of its range."""
  fields = {
    "model": [7, [], {}, ""],
    "messages": [[], {}, "a", [7], [{"role": "user"}], [None]],
    "n": [0, -1, 10**9, 2**70, "1", 1.5, True],
    "max_tokens": [0, -5, 2**70, "7", 10**6],
    "temperature": [-1, 1e9, "hot", [], True],
    "top_p": [0, 1.1, -3, "a"],
    "seed": [2**80, "x", 1.5],
    "logprobs": ["yes", 1],
    "top_logprobs": [21, -1, 3],
    "stop": [["a"] * 5, [""], ["a" * 999], 7, [None]],
    "stream": ["true", 1],
    "stream_options": [{"x": 1}, []],
    "response_format": ["json", {"type": "xml"}, {"type": "json_schema"}],
    "structured_outputs": [{"regex": "a", "choice": ["a"]}, {"choice": []}],
    "tools": [[], [{"type": "function"}]],
    "audio": [{"voice": "a"}],
    "modalities": [["text"]],
    "logit_bias": [{"7": 100}],
    "frequency_penalty": [1, "a"],
    "guided_json": [{}],
    f"x{dice.randrange(10**9)}": [1],
  }
  name = dice.choice(list(fields))
  return asked(**{name: dice.choice(fields[name])})


def laughs():
  """A schema whose parts are each twice in the next."""
  twice = {
    f"a{i}": {"type": "array", "items": {"anyOf": [reference(i + 1)] * 2}}
    for i in range(40)
  }
  return {"$defs": twice | {"a40": {"type": "null"}}, **reference(0)}


def reference(i):
  """A reference to a part of a schema."""
  return {"$ref": f"#/$defs/a{i}"}


_NESTED = {"type": "null"}
for _ in range(300):
  _NESTED = {"type": "array", "items": _NESTED}

# Targets that may lead out of the server's files, or to other servers.
_PATHS = (
  *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js/../../app.py"),
  *("/..%2f..%2fapp.py", "/%00", "/v1/models/..%2f..%2fpasswd", "//evil/x"),
  *("/v1/chat/completions/../../x", "http://evil/x", "*", "/\\..\\app.py"),
)
_URLS = (
  *(
    "http://169.254.169.254/latest",
    "https://localhost/x",
    "file:///etc/hosts",
  ),
  *("https://example.com/a.png", "ftp://a/b", "https://[::1]/a", "https://"),
  *("https://example.com@127.0.0.1/", "http://[", "https://a:99999/"),
)
_TEXTS = (
  *("%%%", "aGk", "a" * 5, "data:image/png;base64,!!!", "data:text/plain,a"),
  *("data:image/png,abc", "data:", "", "data:image/svg+xml;base64,PHN2Zz4="),
  *("é" * 8, "data:image/png;base64,", "A" * 2000),
)
_PATTERNS = (
  *("(a{0,700}){0,700}", "(.{0,100}){0,60}", "((a?){200}){200}", "(", "a{9,1}"),
  *("(?=a)b", r"\1", "[z-a]", "(a*)*(", "((){4000000000}){4000000000}"),
  *("(" * 900 + "a" + ")" * 900, "a" * 5000, ".{99999999}"),
)
_GRAMMARS = (
  *("boxes(", "__import__('os')", "regex(open('/etc/passwd').read())", "x(1)"),
  *("choices()", "(" * 3000, "boxes(labels=[';'])", "9" * 3999, ""),
)
_SCHEMAS = (
  *(laughs(), _NESTED, {"type": "x"}, {"allOf": []}, {"$ref": "#/$defs/a0"}),
  *({"type": "string", "maxLength": 10**9}, {"type": "string", "format": "a"}),
  *({"$defs": {"a0": reference(0)}, **reference(0)}, {"enum": []}),
  *({"type": "string", "pattern": "a"}, {"type": "array", "minItems": -1}),
)

KINDS = {
  # Pictures.
  "pixels": Kind(
    lambda d: about(picture(png_head(d.randrange(6000, 2**31), 9**5)))
  ),
  "pixels in a task": Kind(
    lambda d: task("detect", image=picture(png_head(30_000, 30_000)))
  ),
  "pixels that are there": Kind(
    lambda d: about(picture(png(5300, 5000))), is_rare=True
  ),
  "a text of 99 MB in a picture": Kind(
    lambda d: about(
      picture(png_head(9, 9, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))))
    ),
    is_rare=True,
  ),
  "a large GIF": Kind(
    lambda d: about(
      picture(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0))
    )
  ),
  "spoiled JPEG": Kind(lambda d: about(picture(spoiled(d)))),
  "noise": Kind(lambda d: about(picture(d.randbytes(d.randrange(1, 999))))),
  "noise that begins as a picture": Kind(
    lambda d: about(
      picture(
        d.choice((b"\xff\xd8\xff", b"GIF89a", b"RIFF1234WEBP", b"BM", b"II*\0"))
        + d.randbytes(d.randrange(99))
      )
    )
  ),
  "no base64": Kind(lambda d: about(d.choice(_TEXTS))),
  "an address": Kind(lambda d: about(d.choice(_URLS))),
  "many pictures": Kind(
    lambda d: asked(
      messages=[
        {
          "role": "user",
          "content": [
            {"type": "image_url", "image_url": {"url": picture(png(7, 7))}}
          ]
          * 17,
        }
      ]
    )
  ),
  # Bodies.
  "100 MB": Kind(lambda d: raw(b"a" * 99, content_length=10**8), (413, CLOSED)),
  "100 MB that are waited for": Kind(
    lambda d: raw(content_length=10**8, expect="100-continue"), (413,)
  ),
  "21 MB": Kind(lambda d: raw(b" " * 21_000_000), (413, CLOSED), is_rare=True),
  "21 MB in chunks": Kind(
    lambda d: raw(
      b"1000000\r\n" + b" " * 2**24 + b"\r\n1000000\r\n" + b" " * 5_000_000,
      content_length=None,
      transfer_encoding="chunked",
    ),
    (413, CLOSED),
    is_rare=True,
  ),
  "a body that does not come": Kind(
    lambda d: raw(b"{", content_length=d.randrange(2, 999)),
    (408, CLOSED),
    is_rare=True,
  ),
  "a chunk that does not come": Kind(
    lambda d: raw(b"ff\r\n{", content_length=None, transfer_encoding="chunked"),
    (408, CLOSED),
    is_rare=True,
  ),
  "no body": Kind(lambda d: raw()),
  "no JSON": Kind(lambda d: raw(d.choice((b"{", b"[1,", b"a", b"'a'", b"\0")))),
  "no UTF-8": Kind(lambda d: raw(b'{"model": "' + d.randbytes(40) + b'\xff"}')),
  "other JSON": Kind(
    lambda d: raw(d.choice((b"[]", b"7", b'"a"', b"null", b"true", b"[{}]")))
  ),
  "deep JSON": Kind(lambda d: raw(b"[" * d.choice((999, 50_000)))),
  "deep JSON that ends": Kind(
    lambda d: raw(b'{"a":' * 900 + b"1" + b"}" * 900)
  ),
  "many values": Kind(
    lambda d: raw(b"[" + b"0," * 200_000 + b"0]"), (413,), is_rare=True
  ),
  "a long number": Kind(lambda d: raw(b'{"seed": ' + b"9" * 9999 + b"}")),
  "no number": Kind(
    lambda d: raw(
      b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], '
      b'"temperature": %s}' % d.choice((b"NaN", b"Infinity", b"1e999"))
    )
  ),
  "another type of body": Kind(
    lambda d: raw(
      b'{"model": "tiny"}',
      content_type=d.choice(("text/plain", "multipart/form-data", "a", None)),
    )
  ),
  # Values.
  "wrong value": Kind(wrong_value, (400, 404)),
  "another model": Kind(
    lambda d: asked(model=d.choice(("../../etc/passwd", "a" * 9999, "\0"))),
    (404,),
  ),
  "half a character": Kind(
    lambda d: asked(messages=[{"role": "user", "content": "\ud800"}])
  ),
  "a control token": Kind(
    lambda d: asked(messages=[{"role": "user", "content": "a <image> b"}])
  ),
  "other roles": Kind(
    lambda d: asked(
      messages=[{"role": d.choice(("system", "tool", "x")), "content": "a"}]
    )
  ),
  "a wrong task": Kind(
    lambda d: task(
      "detect",
      **d.choice(
        (
          {"labels": []},
          {"labels": ["<loc0000>"]},
          {"labels": ["a"] * 99},
          {"min_score": 2},
          {"image": 7},
          {"x": 1},
          {"max_tokens": 10**9},
        )
      ),
    )
  ),
  "a wrong question": Kind(
    lambda d: task("answer", **d.choice(({}, {"question": ""}, {"lang": "/"})))
  ),
  "no mask codec": Kind(lambda d: task("segment", mask="gif")),
  "a wrong embedding": Kind(
    lambda d: raw(
      json.dumps(
        {"model": "tiny", "input": d.choice(("", [], [7], 7))}
      ).encode(),
      "/v1/embeddings",
    )
  ),
  # Grammars.
  "a pattern": Kind(lambda d: form(regex=d.choice(_PATTERNS))),
  "a grammar": Kind(lambda d: form(grammar=d.choice(_GRAMMARS))),
  "a schema": Kind(lambda d: form(json=d.choice(_SCHEMAS))),
  # HTTP.
  "a path": Kind(
    lambda d: raw(path=d.choice(_PATHS), method="GET"), (400, 403, 404)
  ),
  "a method": Kind(
    lambda d: raw(method=d.choice(("GET", "PUT", "DELETE", "TRACE", "X"))),
    (405,),
  ),
  "another host": Kind(
    lambda d: raw(
      host=d.choice(("evil.com", "localhost.evil.com", "a:b:c", ""))
    ),
    (400, 421),
  ),
  "a foreign page": Kind(
    lambda d: raw(b"{}", origin=d.choice(("https://evil.com", "null"))), (403,)
  ),
  "two hosts": Kind(lambda d: raw(x="1\r\nhost: evil.com")),
  "two lengths": Kind(lambda d: raw(b"{}", x="1\r\ncontent-length: 99")),
  "a wrong length": Kind(
    lambda d: raw(b"{}", content_length=d.choice(("-1", "a", "1" * 99)))
  ),
  "length and chunks": Kind(
    lambda d: raw(b"0\r\n\r\nGET /x", transfer_encoding="chunked")
  ),
  "a wrong chunk": Kind(
    lambda d: raw(b"zz\r\n", content_length=None, transfer_encoding="chunked")
  ),
  "a long header": Kind(
    lambda d: raw(b"{}", x="a" * d.randrange(70_000, 200_000)), (400, CLOSED)
  ),
  "many headers": Kind(
    lambda d: raw(b"{}", **{f"x{i}": "a" * 9 for i in range(5000)}),
    (400, CLOSED),
  ),
  "no HTTP": Kind(
    lambda d: (
      d.choice(
        (
          b"\x16\x03\x01\x02\0\x01\0",
          b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
          b"\0",
        )
      )
      + d.randbytes(99)
      + b"\r\n\r\n"
    ),
    (400, 421, CLOSED),
  ),
  "a header that does not end": Kind(
    lambda d: b"GET / HTTP/1.1\r\nhost: loc",
    (CLOSED,),
    is_rare=True,
  ),
  "a WebSocket": Kind(
    lambda d: raw(
      path="/v1/models/x",
      method="GET",
      connection="upgrade",
      upgrade="websocket",
    ),
    (404,),
  ),
}


async def send(port: int, data: bytes) -> int:
  """Sends bytes; returns the status of the answer, CLOSED without one."""
  try:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
  except ConnectionError:
    return CLOSED
  try:
    writer.write(data)
    async with asyncio.timeout(SLOWEST):
      line = await reader.readline()
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", line)
    return int(found[1]) if found else CLOSED
  except ConnectionError:
    return CLOSED
  finally:
    writer.transport.abort()


def memory(process: int) -> tuple[float, float]:
  """Resident memory of a process in MiB: now, and the most so far."""
  with open(f"/proc/{process}/status") as file:
    found = dict(line.split(":", 1) for line in file)
  return tuple(int(found[x].split()[0]) / 1024 for x in ("VmRSS", "VmHWM"))


def start(
  *options: str, ckpt: str = "paligemma/assets/tiny.npz"
) -> tuple[subprocess.Popen, str]:
  """Starts a server of a model; returns it and its address."""
  server = subprocess.Popen(
    [
      *(sys.executable, "-m", "scripts.serve", "--port", "0", "--ckpt", ckpt),
      *("--tokenizer", "paligemma/assets/tiny_tokenizer.model"),
      *("--name", "tiny", *options),
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  address = server.stdout.readline().strip()
  assert address, "the server did not start"
  return server, address


async def attack(address: str, count: int, seed: int, process: int) -> bool:
  """Sends the requests; returns whether all went as it should."""
  port, dice = int(address.rpartition(":")[2]), random.Random(seed)
  idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(IDLE)]
  opened = time.monotonic()
  common = [name for name, kind in KINDS.items() if not kind.is_rare]
  rare = [name for name, kind in KINDS.items() if kind.is_rare]
  names = [
    dice.choice(rare if dice.random() < RARE * len(rare) else common)
    for _ in range(count)
  ]
  seconds, wrong, good = collections.defaultdict(list), [], []
  work = iter(enumerate(names))
  before, _ = memory(process)

  async def client() -> None:
    for i, name in work:
      own = random.Random(f"{seed} {i}")
      data = KINDS[name].make(own)
      begin = time.perf_counter()
      status = await send(port, data)
      seconds[name].append(time.perf_counter() - begin)
      if status not in KINDS[name].statuses:
        wrong.append(f"{name} ({i}): {status or 'closed'}")
      if i % 50 == 0:
        good.append(await _is_served(address, own))

  await asyncio.gather(*(client() for _ in range(AT_ONCE)))
  closed = 0
  for reader, writer in idle:
    left = opened + SLOWEST - time.monotonic()
    try:
      async with asyncio.timeout(max(left, 0.1)):
        closed += await reader.read() == b""
    except (ConnectionError, TimeoutError) as error:
      closed += isinstance(error, ConnectionError)
    writer.close()
  now, most = memory(process)
  quick = sorted(x for n in common for x in seconds[n])
  print(f"{count} requests of {len(seconds)} kinds, {len(wrong)} wrong")
  print(*wrong[:20], sep="\n")
  slowest = max(common, key=lambda n: max(seconds[n], default=0))
  print(
    f"seconds: median {quick[len(quick) // 2]:.3f}, 99 % "
    f"{quick[len(quick) * 99 // 100]:.3f}, slowest {quick[-1]:.3f} ({slowest})"
  )
  print(f"idle connections closed: {closed} of {IDLE}")
  print(f"good requests answered: {sum(good)} of {len(good)}")
  print(f"memory: {before:.0f} MiB before, {now:.0f} after, {most:.0f} at most")
  return not wrong and closed == IDLE and all(good)


async def _is_served(address, dice):
  uri = picture(png(dice.randrange(1, 99), 9))
  content = [
    {"type": "image_url", "image_url": {"url": uri}},
    {"type": "text", "text": "caption en"},
  ]
  asked = {
    "model": "tiny",
    "messages": [{"role": "user", "content": content}],
    "max_tokens": 4,
  }
  async with httpx.AsyncClient(timeout=60) as client:
    answer = await client.post(f"{address}{CHAT}", json=asked)
  return answer.status_code == 200


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("count", type=int)
  parser.add_argument("seed", type=int)
  args = parser.parse_args()
  server, address = start()
  try:
    went_well = asyncio.run(attack(address, args.count, args.seed, server.pid))
    assert server.poll() is None, "the server ended"
  finally:
    server.terminate()
    print(f"the server ended with {server.wait(60)}")
  sys.exit(not went_well)


if __name__ == "__main__":
  command_line.run(main)
