"""What all makers share: texts, answers, pictures and archives.

A maker draws examples, and of each the publisher's record and, beside it, the
line that scripts.prepare should write.
"""

import csv
import functools
import io
import json
import tarfile
import zipfile
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

COUNT = 24  # examples of most splits
WIDTH, HEIGHT = 43, 31
# What texts of people hold; each is to arrive as it is.
_TEXTS = (
  "{}, {}",
  '{} "{}"',
  "{}  {} ",
  "{}\n{}",
  "{} Grüße, n°{}",
  "{} 漢字 {}",
  "{} 🙂 {}",
  "{};\t{}\\",
  "{}\u2028{}",
  "{} e\u0301 {}",
  "{} 'n' {}%",
)


class Made(NamedTuple):
  """Files of a publisher, and the lines that they should become.

  Attributes:
    files: path -> what `write` takes.
    lines: split -> its lines, in order.
  """

  files: dict[str, Any]
  lines: dict[str, list[dict[str, Any]]]


def text(what, i):
  """A text that differs for each number, most with something unusual."""
  return _TEXTS[i % len(_TEXTS)].format(what, i)


def answers(i):
  """Those of ten people, who agree or do not."""
  return [
    ["two"] * 7 + ["2", "a pair", "unanswerable"],
    ["yes"] * 10,
    [text("it is", i + n) for n in range(10)],
    ["no"] * 5 + ["yes"] * 5,
    ["unanswerable"] * 9 + ["café"],
  ][i % 5]


def plain(path):
  """How a line names a picture that is a file."""
  return f"../raw/{path}"


def packed(path):
  """How a line names a picture of an archive."""
  return f"images/{path}"


def jpeg(seed=0, size=(HEIGHT, WIDTH), **options):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  return _encoded(Image.fromarray(pixels), "JPEG", **options)


@functools.cache
def picture(path, i=0):
  """A file by its ending; its colours, and at times its format, differ by i."""
  pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
  rgb = Image.fromarray(pixels)
  end = path.rpartition(".")[2].lower()
  if end == "gif":
    return _encoded(rgb.quantize(16), "GIF")
  if end == "tif":
    return _encoded(rgb, "TIFF")
  turned = Image.Exif()
  turned[274] = 6
  forms = [
    lambda: _encoded(rgb, "JPEG"),
    lambda: _encoded(rgb.convert("L"), "JPEG"),
    lambda: _encoded(rgb.convert("CMYK"), "JPEG"),
    lambda: _encoded(rgb, "JPEG", exif=turned),
    lambda: _encoded(rgb, "JPEG", progressive=True),
    lambda: _encoded(rgb, "PNG"),
    lambda: _encoded(rgb, "WEBP"),
  ]
  if end == "png":
    forms = [
      lambda: _encoded(rgb, "PNG"),
      lambda: _encoded(rgb.quantize(16), "PNG", transparency=3),
      lambda: _encoded(rgb.convert("RGBA"), "PNG"),
      lambda: _encoded(rgb.convert("LA"), "PNG"),
      lambda: _encoded(rgb.convert("1"), "PNG"),
      lambda: _encoded(
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG"
      ),
      lambda: _encoded(rgb, "JPEG"),
    ]
  return forms[i % len(forms)]()


def pictures(paths):
  """{path: file} of many; two neighbours differ in their colours."""
  return {x: picture(x[-4:], i % 7) for i, x in enumerate(dict.fromkeys(paths))}


def _encoded(image, form, **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def table(rows, end="\r\n"):
  """The text of a CSV."""
  file = io.StringIO()
  writer = csv.DictWriter(file, list(rows[0]), lineterminator=end)
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def json_lines(values, end="\n"):
  return "".join(json.dumps(x) + end for x in values)


def with_mark(value):
  """JSON after a byte-order mark, indented and with lines of Windows."""
  value = json.dumps(value, ensure_ascii=False, indent=1)
  return "\ufeff" + value.replace("\n", "\r\n")


def encoded(content):
  """Bytes of a file: of bytes, of a text, or of a value as JSON."""
  if isinstance(content, bytes):
    return content
  return (content if isinstance(content, str) else json.dumps(content)).encode()


def write(folder, name, content):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(content))
  return path


def write_all(folder, files):
  for name, content in files.items():
    write(folder, name, content)
  return folder


def read_lines(path):
  """The objects of a JSONL; texts in it may hold ends of lines of Unicode."""
  return list(map(json.loads, path.read_bytes().splitlines()))


def zipped(files):
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in files.items():
      archive.writestr(name, encoded(content))
  return data.getvalue()


def tarred(files):
  """Beside its files with the folder itself, and one that a Mac has added."""
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode="w:gz") as archive:
    folder = tarfile.TarInfo("./.")
    folder.type = tarfile.DIRTYPE
    archive.addfile(folder)
    for name, content in {**files, "._mac": b"x"}.items():
      content = encoded(content)
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return data.getvalue()
