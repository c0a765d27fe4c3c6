"""Files that users name: the right path, or one line that says why not."""

import os
import socket

import pytest

from paligemma.data import files


def fails(call, *args, match, **kwargs):
  with pytest.raises(ValueError, match=match) as info:
    call(*args, **kwargs)
  message = str(info.value)
  assert "\n" not in message and len(message) < 600
  return message


def test_paths(tmp_path):
  (tmp_path / "a").write_bytes(b"x y")
  assert str(files.resolve("b/c", tmp_path)) == f"{tmp_path}/b/c"
  assert str(files.resolve("/b/c", tmp_path)) == "/b/c"
  assert str(files.resolve(tmp_path / "a")) == f"{tmp_path}/a"
  assert str(files.resolve("gs://b/c", tmp_path)) == "gs://b/c"
  assert str(files.resolve("c.png", "gs://b")) == "gs://b/c.png"
  path = files.resolve("a", tmp_path)
  assert files.read(path) == b"x y"
  assert files.read(path, max_bytes=3) == b"x y"
  fails(
    files.read, path, max_bytes=2, match="a: cannot read file: it has more "
  )
  with files.open_binary(path) as file:
    assert file.read() == b"x y"


@pytest.mark.parametrize(
  "name",
  [
    "http://127.0.0.1:9/a.jpg",
    "https://x.y/a.jpg?b=" + "c" * 999,
    "file:///etc/hosts",
    "ftp://a/b",
    "odd\n://a",
  ],
)
def test_addresses_that_are_not_read(name):
  message = fails(
    files.read,
    files.resolve(name, "folder"),
    what="image",
    where="a.jsonl:3",
    match=r"^a.jsonl:3: cannot read image .*: an address, expected a path",
  )
  assert message.endswith("; download it first")
  fails(
    files.open_binary,
    name,
    what="data",
    match=r": cannot read data: an address, expected a path",
  )


@pytest.mark.parametrize(
  ("name", "package"),
  [("gs://b/a.jpg", "gcsfs"), ("s3://b/a.jpg", "s3fs"), ("az://b/a", "adlfs")],
)
def test_addresses_whose_package_is_missing(name, package):
  pytest.importorskip("fsspec")
  for module in (package, "tensorflow"):
    if _is_installed(module):
      pytest.skip(f"{module} is installed")
  fails(
    files.read,
    files.resolve(name),
    what="image",
    where="a.jsonl:3",
    match=f"^a.jsonl:3: cannot read image {name}: .* pip install {package}$",
  )


def _is_installed(module):
  try:
    __import__(module)
  except ImportError:
    return False
  return True


@pytest.fixture
def special(tmp_path):
  """Paths of what is no regular file."""
  os.mkfifo(tmp_path / "pipe")
  with socket.socket(socket.AF_UNIX) as server:
    cwd = os.getcwd()
    os.chdir(tmp_path)  # a path of a socket must be short
    server.bind("socket")
    os.chdir(cwd)
    yield [tmp_path / "pipe", tmp_path / "socket", "/dev/zero", "/dev/null"]


def test_what_is_no_regular_file_is_not_read(special, tmp_path):
  for path in special:
    fails(
      files.read,
      files.resolve(path),
      what="image",
      where="a:1",
      match=f"^a:1: cannot read image {path}: a device, a pipe or a soc",
    )
  fails(files.read, files.resolve(tmp_path), match="file: Is a directory$")


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("no", "No such file or directory"),
    ("a\0b", "embedded null (byte|character)"),
    ("a" * 5000, "File name too long"),
    ("data:image/png;base64," + "A" * 5000, "File name too long"),
    ("a\nb", "No such file or directory"),
    ("\ud800", "surrogates not allowed|No such file"),
  ],
)
def test_paths_that_lead_nowhere(name, reason, tmp_path):
  fails(files.read, files.resolve(name, tmp_path), match=f"file: .*{reason}")
