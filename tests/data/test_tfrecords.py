"""TFRecord files, as tensorboardX and TensorFlow write them."""

import base64
import sys

import pytest
from tensorboardX import record_writer

from paligemma.data import tfrecords

RECORDS = [b"", b"one", b"\x00" * 1000, bytes(range(256)) * 300, b"last"]


@pytest.fixture
def path(tmp_path):
  """An independent writer of the format."""
  path = tmp_path / "a.tfrecord-00000-of-00001"
  writer = record_writer.RecordWriter(str(path))
  for record in RECORDS:
    writer.write(record)
  writer.close()
  return path


def test_records_in_any_order(path):
  parts = [(path, 1, 3), (path, 0, 1), (path, 2, 0), (path, 4, 1)]
  records = tfrecords.Records(parts)
  expected = [*RECORDS[1:4], RECORDS[0], RECORDS[4]]
  assert len(records) == 5
  for i in (3, 0, 4, 1, 2):
    assert records[i] == expected[i]
  assert len(tfrecords.Records([])) == 0


def test_a_file_of_tensorflow(tmp_path):
  """What tf.io.TFRecordWriter writes of b"foo"."""
  path = tmp_path / "foo.tfrecord"
  path.write_bytes(base64.b64decode(b"AwAAAAAAAACwmUkOZm9vYYq+/g=="))
  assert tfrecords.Records([(path, 0, 1)])[0] == b"foo"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: x[:-2], "ends within record 4, copy it again$"),
    (lambda x: x[:-17], "ends within record 4, copy it again$"),
    (lambda x: x[:28] + b"!" + x[29:], "damaged at record 1, copy it again$"),
    (lambda x: b"\x1f\x8b" + x[2:], "no record at byte 0, expected an uncompr"),
    (lambda x: x[: 16 + 19], "holds 2 records, expected 5; is it of another"),
    (lambda x: b"", "holds 0 records, expected 5"),
    (lambda x: x[:25] + b"!" + x[26:], "no record at byte 16, expected an"),
  ],
)
def test_bad_files(path, change, message):
  path.write_bytes(change(path.read_bytes()))
  records = tfrecords.Records([(path, 0, 5)])
  with pytest.raises(ValueError, match=message):
    for i in range(5):
      records[i]


def test_without_its_package(path, monkeypatch):
  monkeypatch.setitem(sys.modules, "google_crc32c", None)
  with pytest.raises(ValueError, match=r"need a package: pip install .paligem"):
    tfrecords.Records([(path, 0, 1)])[0]


def test_a_missing_file(tmp_path):
  with pytest.raises(ValueError, match="x: cannot read data: No such file"):
    tfrecords.Records([(tmp_path / "x", 0, 1)])[0]
