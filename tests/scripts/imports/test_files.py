"""Lines, tables and JSON of annotation files, and what is wrong with them."""

import json

import pytest

from scripts.imports import files


def rows(path):
  return [row for _, row in files.read_rows(path)]


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


# What str.splitlines cuts at and nothing else does.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c"


def test_only_line_feeds_end_a_line(tmp_path):
  path = write(tmp_path / "a.txt", f"one{SEPARATORS}\r\ntwo\r\n\nthree")
  assert list(files.read_lines(path)) == [
    f"one{SEPARATORS}",
    "two",
    "",
    "three",
  ]


def test_lines_of_jsonl(tmp_path):
  text = json.dumps({"text": f"a{SEPARATORS}b"}, ensure_ascii=False)
  path = write(tmp_path / "a.jsonl", f"\ufeff{text}\r\n\r\n{text}\n")
  found = list(files.read_rows(path))
  assert [place for place, _ in found] == [f"{path}:1", f"{path}:3"]
  assert [row for _, row in found] == [{"text": f"a{SEPARATORS}b"}] * 2


def test_lines_of_csv(tmp_path):
  path = write(
    tmp_path / "a.csv",
    f'image,text\r\na.png,one{SEPARATORS}two\r\nb.png,"one,\r\n""two"""\r\nc,d',
  )
  assert list(files.read_rows(path)) == [
    (f"{path}:2", {"image": "a.png", "text": f"one{SEPARATORS}two"}),
    (f"{path}:4", {"image": "b.png", "text": 'one,\n"two"'}),
    (f"{path}:5", {"image": "c", "text": "d"}),
  ]


@pytest.mark.parametrize("delimiter", ",;|\t")
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_delimiters(delimiter, suffix, quote, tmp_path):
  others = ",;|\t".replace(delimiter, "")
  lines = [("a", "b", "c"), ("1", f'"{others}"', "3")]
  lines[0] = [f"{quote}{cell}{quote}" for cell in lines[0]]
  path = tmp_path / f"x{suffix}"
  write(path, "".join(delimiter.join(line) + "\n" for line in lines))
  assert rows(path) == [{"a": "1", "b": others, "c": "3"}]


def test_a_table_of_one_column(tmp_path):
  path = write(tmp_path / "x.csv", "image\na.png\n")
  assert rows(path) == [{"image": "a.png"}]


@pytest.mark.parametrize(
  "index", ["", "Unnamed: 0", ",Unnamed: 0", "Unnamed: 0.1,Unnamed: 0"]
)
def test_the_index_of_pandas(index, tmp_path):
  cells = "7," * index.count(",") + "7"
  path = write(tmp_path / "x.csv", f"{index},a,b\n{cells},1,2\n")
  assert rows(path) == [{"a": "1", "b": "2"}]
  write(path, f"{index},a,b\n1,2\n")
  with pytest.raises(ValueError, match=r"x\.csv:2: found 2 cells, expected "):
    rows(path)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("a,b\n1,2,3\n", ":2: found 3 cells, expected 2: a, b"),
    (
      "a,,b\n1,2,3\n",
      ":1: expected a header of different names, found 'a, , b",
    ),
    ("a,a\n1,2\n", ":1: expected a header of different names"),
    ("a,b\n", ": holds no row, expected at least one"),
    ("", ": holds no row, expected at least one"),
    ('a,b\n1,"2', ":2: malformed CSV: unexpected end of data"),
    (f"a,b\n1,{'x' * 200_000}\n", ":2: malformed CSV: field larger than field"),
    ("a,b\r1,2\r", ":1: malformed CSV: new-line character seen in unquoted"),
    ("a,b\n1,\0\n", ":2: a NUL byte; this is no text, or one in UTF-16"),
    (
      "a,b\n1,\xe9\n".encode("latin-1"),
      ":2: not UTF-8, but byte 0xe9; save it",
    ),
    ("a,b\n".encode("utf-16"), ": is in UTF-16 or UTF-32; save it as UTF-8"),
    (
      "a,b\n".encode("utf-16-be"),
      ":1: a NUL byte; this is no text, or one in U",
    ),
    ("a,b\n".encode("utf-32"), ": is in UTF-16 or UTF-32; save it as UTF-8"),
    (
      ",".join(f"c{i}" for i in range(9000)) + "\n1,2\n",
      ":2: found 2 cells, e",
    ),
  ],
)
def test_bad_tables(content, message, tmp_path):
  path = write(tmp_path / "x.csv", content)
  with pytest.raises(ValueError) as info:
    rows(path)
  assert str(info.value).startswith(f"{path}{message}")
  assert "\n" not in str(info.value)
  assert len(str(info.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"a":\n1,}', ":2: malformed JSON at column 3: "),
    ("[" * 100_000, ": malformed JSON at column 1: nested too deep"),
    (
      '{"a": 1,\n"b": NaN}',
      ":2: malformed JSON at column 6: NaN is no number ",
    ),
    ('{"NaN": 1,\n"b": [-Infinity]}', ":2: malformed JSON at column 7: -Inf"),
    (f'{{"a":\n{"1" * 5000}}}', ":2: malformed JSON at column 1: Exceeds the "),
  ],
)
def test_bad_json(content, message, tmp_path):
  path = write(tmp_path / "x.json", content)
  with pytest.raises(ValueError) as info:
    files.read_json(path)
  assert str(info.value).startswith(f"{path}{message}")
  assert "\n" not in str(info.value)
  assert len(str(info.value)) < len(str(path)) + 300


def test_a_file_that_is_a_folder(tmp_path):
  with pytest.raises(ValueError, match="cannot read it: Is a directory"):
    files.read_text(tmp_path)


def test_numbers():
  assert files.numbers(["1", 2.5], 2, "x, y", "here") == [1, 2.5]
  for values in (["1"], "12", [10**400, 1], [float("nan"), 1], [[], 1], None):
    with pytest.raises(ValueError, match="here: expected 2 numbers x, y, foun"):
      files.numbers(values, 2, "x, y", "here")


def test_fields_of_many_names():
  many = dict.fromkeys(map(str, range(9999)))
  with pytest.raises(
    ValueError, match='here: missing key "a", found 0, 1'
  ) as e:
    files.get(many, "a", int, "here")
  assert len(str(e.value)) < 300
