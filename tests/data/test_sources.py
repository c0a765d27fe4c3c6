"""JSONL and TFDS examples, and a clear line for each bad one."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from tensorboardX import record_writer

from paligemma.data import preprocess, sources, video


def png(value=0):
  data = io.BytesIO()
  Image.new("RGB", (3, 2), (value, 0, 0)).save(data, "PNG")
  return data.getvalue()


@pytest.fixture
def write(tmp_path):
  """Writes lines to data.jsonl beside five images; returns its path."""
  for i in range(5):
    (tmp_path / f"{i}.png").write_bytes(png(i))

  def write(*lines):
    texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path

  return write


def examples(n=5):
  return [
    {"image": f"{i}.png", "prefix": f"p{i} é", "suffix": f"s{i}", "id": i}
    for i in range(n)
  ]


@pytest.fixture
def five(write):
  return sources.Jsonl(write(*examples()))


def ids(source):
  return [source[i]["id"] for i in range(len(source))]


@pytest.mark.parametrize("seed", range(7))
def test_a_share_of_the_pictures_is_val(write, tmp_path, seed):
  """Copies stay together, as do lines of one image; no line is lost."""
  for name in ("5_jpg.rf.a1.png", "5_jpg.rf.b2.png"):
    (tmp_path / name).write_bytes(png(7))
  (tmp_path / "copy.png").write_bytes(png(0))
  names = [f"{i}.png" for i in range(5)]
  names += ["5_jpg.rf.a1.png", "3.png", "copy.png", "5_jpg.rf.b2.png"]
  lines = [{"image": name, "id": i} for i, name in enumerate(names)]
  path = write(*lines[:3], "{", *lines[3:], {"image": ["9.png", "1.png"]})

  def part(name):
    return sources.Jsonl(path, val_share=0.4, part=name, seed=seed)

  train, val = part("train"), part("val")
  texts = {
    name: [e for e in source.without_images() if isinstance(e, dict)]
    for name, source in (("train", train), ("val", val))
  }
  found = {
    name: {str(e["_image_path"]) for e in examples}
    for name, examples in texts.items()
  }
  assert not found["train"] & found["val"]
  for name in found:
    both = {"5_jpg.rf.a1.png", "5_jpg.rf.b2.png"}
    assert both <= found[name] or not both & found[name]
    assert ("0.png" in found[name]) == ("copy.png" in found[name])
    assert ("1.png" in found[name]) == ("['9.png', '1.png']" in found[name])
  assert len(train) + len(val) == 11
  assert [e["id"] for e in texts["val"] if "id" in e] == [
    i for i, name in enumerate(names) if name in found["val"]
  ]
  assert not [e for e in val.without_images() if isinstance(e, ValueError)]
  again = pickle.loads(pickle.dumps(val))
  assert [e["_where"] for e in again.without_images()] == [
    e["_where"] for e in texts["val"]
  ]


def test_other_seeds_make_other_splits(write):
  path = write(*examples())
  drawn = {
    tuple(ids(sources.Jsonl(path, val_share=0.4, part="val", seed=seed)))
    for seed in range(9)
  }
  assert len(drawn) > 3
  assert {len(x) for x in drawn} == {2}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"val_share": 5.0}, "val_share is 5.0, expected a share between 0 and 1$"),
    ({"val_share": 0.01}, "val_share 0.01 of 5 images .* is 0, which leaves"),
    ({"part": "val"}, 'part "val" needs val_share, such as 0.1$'),
    ({"part": "vall", "val_share": 0.2}, 'unknown part "vall".*"val"'),
  ],
)
def test_a_split_that_cannot_be(write, arguments, message):
  with pytest.raises(ValueError, match=message):
    sources.Jsonl(write(*examples()), **arguments)


def test_jsonl(write):
  path = write(*examples(3))
  source = sources.Jsonl(path)
  assert len(source) == 3
  assert source[1] == {
    "image": png(1),
    "prefix": "p1 é",
    "suffix": "s1",
    "id": 1,
    "_image_path": "1.png",
    "_where": f"{path}:2",
  }


def test_jsonl_with_blank_lines_crlf_and_byte_order_mark(write):
  path = write("")
  a, b = (json.dumps(x).encode() for x in examples(2))
  path.write_bytes(b"\xef\xbb\xbf" + a + b"\r\n\r\n  \n" + b + b"\n\n")
  source = sources.Jsonl(path)
  assert ids(source) == [0, 1]
  assert source[1]["_where"] == f"{path}:4"


def test_jsonl_image_root(write, tmp_path):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "0.png").write_bytes(png(77))
  source = sources.Jsonl(write(*examples(1)), tmp_path / "elsewhere")
  assert source[0]["image"] == png(77)


def test_jsonl_absolute_image_path(write, tmp_path):
  source = sources.Jsonl(write({"image": str(tmp_path / "3.png")}), "nowhere")
  assert source[0]["image"] == png(3)


def test_jsonl_with_several_images(write):
  source = sources.Jsonl(write({"image": ["2.png", "0.png"], "id": 7}))
  example = source[0]
  assert example["image"] == [png(2), png(0)]
  assert example["_image_path"] == ["2.png", "0.png"]


def test_jsonl_tells_how_many_images_a_line_has(write):
  assert sources.Jsonl(write(*examples(1))).frames() == 0
  path = write({"image": ["no.png", "0.png"]}, {"image": ["0.png"]})
  assert sources.Jsonl(path).frames() == 2
  assert sources.Jsonl(write({"image": ["0.png"]})).frames() == 1


def test_jsonl_is_lazy(write):
  source = sources.Jsonl(write(*examples(1), "{broken", {"image": "no.png"}))
  assert source[0]["id"] == 0


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"image": "0.png" "prefix": 1}', r"column 19: .* found '\"prefix\": 1}'"),
    ('{"image": "0.png"', r"column 18: .* found the end of the line"),
    ("[1, 2]", r"expected an object such as .* found list"),
    ("[" * 100_000, r"JSON with too many brackets"),
    (f'{{"id": {"1" * 5000}}}', r"malformed JSON: Exceeds the limit"),
    (
      '{"image": "0.png", "prefix": "hi \\ud83d"}',
      r"a text holds '\\ud83d', half a surrogate pair",
    ),
    ('{"imag": "0.png"}', r'found keys imag\. Did you mean "imag"\?'),
    ('{"image": 7}', r'a path under the key "image", found 7$'),
    ('{"image": []}', r'a path under the key "image", found \[\]$'),
    ('{"image": ["0.png", 7]}', r'the key "image", found \[.0.png., 7\]$'),
    ('{"image": ["no.png"]}', r"cannot read image .*no\.png: No such file"),
    ('{"image": "no.png"}', r"cannot read image .*no\.png: No such file"),
    ('{"image": "."}', r"cannot read image .*: Is a directory"),
    ('{"image": "/dev/zero"}', r"cannot read image /dev/zero: a device"),
    (
      '{"image": "http://127.0.0.1:9/a.jpg"}',
      r"cannot read image http://127.0.0.1:9/a.jpg: an address, expected a "
      r"path; download it fi",
    ),
    (
      '{"image": ["0.png", "https://x/a"]}',
      r"image https://x/a: an address, e",
    ),
    (
      '{"image": {"bytes": "%s"}}' % ("A" * 999),
      r'key "image", found .{,230}$',
    ),
  ],
)
def test_bad_lines_are_named(write, line, message):
  path = write(*examples(2), line)
  source = sources.Jsonl(path)
  with pytest.raises(ValueError, match=message) as info:
    source[2]
  assert str(info.value).startswith(f"{path}:3: ")
  assert "\n" not in str(info.value)


def test_line_that_is_not_utf8(write):
  path = write(*examples(1))
  path.write_bytes(b'{"image": "\xff"}')
  with pytest.raises(ValueError, match=r"data\.jsonl:1: not UTF-8: .*0xff"):
    sources.Jsonl(path)[0]


def test_missing_and_empty_file(write, tmp_path):
  with pytest.raises(ValueError, match=r"no\.jsonl: cannot read data: .*No su"):
    sources.Jsonl(tmp_path / "no.jsonl")
  with pytest.raises(ValueError, match=r"^http://a/b: .* data: an address, "):
    sources.Jsonl("http://a/b")
  with pytest.raises(ValueError, match=r"^http://a: an address, expected a pa"):
    sources.Jsonl(write(*examples(1)), "http://a")
  with pytest.raises(ValueError, match=r"data\.jsonl: empty data set"):
    sources.Jsonl(write("", "  "))


@pytest.mark.parametrize(
  ("bounds", "expected"),
  [
    ("[:]", [0, 1, 2, 3, 4]),
    ("[:2]", [0, 1]),
    ("[3:]", [3, 4]),
    ("[-1:]", [4]),
    ("[1:-1]", [1, 2, 3]),
    ("[:50%]", [0, 1]),
    ("[50%:]", [2, 3, 4]),
    ("[-20%:]", [4]),
    ("[20%:1000]", [1, 2, 3, 4]),
  ],
)
def test_slice(five, bounds, expected):
  assert ids(sources.Slice(five, bounds)) == expected


@pytest.mark.parametrize("percent", range(0, 101, 7))
def test_percentages_partition(percent):
  everything = [{"id": i} for i in range(13)]
  parts = []
  for bounds in (f"[:{percent}%]", f"[{percent}%:]"):
    try:
      parts += ids(sources.Slice(everything, bounds))
    except ValueError as error:
      assert "is empty" in str(error)
  assert parts == list(range(13))


def test_slice_of_a_slice(five):
  assert ids(sources.Slice(sources.Slice(five, "[1:]"), "[:-2]")) == [1, 2]


@pytest.mark.parametrize("bounds", ["", "1:2", "[1]", "[:9x]", "[0.5:]"])
def test_malformed_slice(five, bounds):
  with pytest.raises(ValueError, match=r'malformed slice .* such as "\[:90%'):
    sources.Slice(five, bounds)


def test_empty_slice(five):
  with pytest.raises(
    ValueError, match=r'"\[5:\]" of the 5 examples of .*jsonl'
  ):
    sources.Slice(five, "[5:]")


def test_cached_reads_once(five, tmp_path):
  source = sources.Cached(five)
  first = source[2]
  first["prefix"] = "changed by the reader"
  (tmp_path / "2.png").unlink()
  assert source[2] == {**first, "prefix": "p2 é"}
  with pytest.raises(ValueError, match=r"2\.png"):
    five[2]


def test_sources_pickle_small(five):
  cached = sources.Cached(sources.Slice(five, "[1:]"))
  assert ids(cached) == [1, 2, 3, 4]
  pickled = pickle.dumps(cached)
  assert len(pickled) < 2000
  assert ids(pickle.loads(pickled)) == [1, 2, 3, 4]


def test_make(write):
  path = write(*examples())
  source = sources.make("jsonl", path=path, slice="[:2]", cache=True)
  assert isinstance(source, sources.Cached)
  assert ids(source) == [0, 1]
  assert str(source) == f"{path}[:2]"
  assert ids(sources.make("jsonl", path=path)) == [0, 1, 2, 3, 4]


def test_make_with_unknown_names(write):
  path = write(*examples())
  with pytest.raises(ValueError, match=r'source "json", .* mean "jsonl"'):
    sources.make("json", path=path)
  with pytest.raises(
    ValueError, match=r'jsonl argument "image_rot", .* mean "im'
  ):
    sources.make("jsonl", path=path, image_rot="x")


def clip(count):
  """A video whose frame i is of gray level i."""
  av = pytest.importorskip("av")
  data = io.BytesIO()
  with av.open(data, "w", format="matroska") as out:
    stream = out.add_stream("ffv1", rate=10)
    stream.height, stream.width, stream.pix_fmt = 10, 14, "bgr0"
    for i in range(count):
      pixels = np.full((10, 14, 3), i, np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return data.getvalue()


@pytest.fixture
def videos(write, tmp_path):
  """Writes lines beside videos of 5 and 29 frames; returns the path."""
  for count in (5, 29):
    (tmp_path / f"{count}.mkv").write_bytes(clip(count))
  (tmp_path / "empty.mkv").write_bytes(b"")
  return write


def levels(example):
  return [int(frame.mean()) for frame in example["image"]]


def test_video_jsonl(videos):
  path = videos({"video": "5.mkv"}, {"video": "29.mkv", "prefix": "p", "id": 3})
  source = sources.make(
    "video_jsonl", path=path, num_frames=3, stride=4, slice="[1:]"
  )
  example = pickle.loads(pickle.dumps(source))[0]
  assert levels(example) == [0, 4, 8]
  assert example["image"][0].shape == (10, 14, 3)
  del example["image"]
  assert example == {
    "video": "29.mkv",
    "prefix": "p",
    "id": 3,
    "_video_path": "29.mkv",
    "_where": f"{path}:2",
  }


def test_video_jsonl_defaults_and_short_clips(videos):
  path = videos({"video": "29.mkv"}, {"video": "5.mkv"})
  source = sources.VideoJsonl(path)
  assert levels(source[0]) == [0, 9, 18, 27] * 4
  padded = sources.VideoJsonl(path, num_frames=4, stride=3, short="pad")
  assert levels(padded[1]) == [0, 3, 0, 0]
  tiled = sources.VideoJsonl(path, num_frames=5, stride=3)
  assert levels(tiled[1]) == [0, 3, 0, 3, 0]


def test_video_jsonl_of_undecoded_videos(videos, tmp_path):
  source = sources.VideoJsonl(
    videos({"video": "5.mkv"}), video_root=tmp_path, num_frames=None
  )
  example = source[0]
  assert example["image"] == (tmp_path / "5.mkv").read_bytes()
  op = video.Frames(num_frames=2, stride=3)
  assert levels(op(example, np.random.default_rng(0))) == [0, 3]


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ({"vidoe": "5.mkv"}, r'under the key "video", found keys vidoe\. Did you '),
    ({"video": 7}, r'expected a path under the key "video", found 7$'),
    ({"video": "no.mkv"}, r"cannot read video .*no\.mkv: No such file"),
    ({"video": "."}, r"cannot read video .*: Is a directory"),
    ({"video": "/dev/zero"}, r"cannot read video /dev/zero: a device"),
    ({"video": "http://a/b.mp4"}, r"cannot read video .*: an address"),
    ({"video": "empty.mkv"}, r".*empty\.mkv: damaged video, or of a kind"),
    ({"video": "data.jsonl"}, r".*data\.jsonl: damaged video, or of a kind"),
  ],
)
def test_bad_videos_are_named(videos, line, message):
  path = videos({"video": "5.mkv"}, line)
  source = sources.VideoJsonl(path)
  with pytest.raises(ValueError, match=message) as info:
    source[1]
  assert str(info.value).startswith(f"{path}:2: ")
  assert "\n" not in str(info.value)


def test_bad_values_for_videos(videos):
  path = videos({"video": "5.mkv"})
  with pytest.raises(ValueError, match=r'short "loop", expected one of: pad'):
    sources.make("video_jsonl", path=path, short="loop")
  with pytest.raises(ValueError, match="num_frames is 0"):
    sources.make("video_jsonl", path=path, num_frames=0)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
  """Prepares the data set "shades" in ArrayRecord format."""
  import tensorflow_datasets as tfds

  class Shades(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict(
        {
          "picture": tfds.features.Image(shape=(None, None, 3)),
          "question": tfds.features.Text(),
          "answers": tfds.features.Sequence(tfds.features.Text()),
          "frames": tfds.features.Sequence(
            tfds.features.Image(shape=(None, None, 3))
          ),
          "id": np.int64,
        }
      )
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(5):
        yield (
          i,
          {
            "picture": png(i),
            "question": f"q{i} é",
            "answers": [f"a{i}", "b"],
            "frames": [png(i), png(9)],
            "id": i,
          },
        )

  path = tmp_path_factory.mktemp("tfds")
  builder = Shades(data_dir=path, file_format="array_record")
  builder.download_and_prepare()
  return path


def test_tfds(tfds_dir):
  source = sources.Tfds("shades", "train", tfds_dir, image_key="picture")
  assert sorted(ids(source)) == [0, 1, 2, 3, 4]
  for i in range(len(source)):
    example = source[i]
    number = example["id"]
    assert len(example.pop("frames")) == 2
    assert example == {
      "image": png(number),
      "question": f"q{number} é",
      "answers": [f"a{number}", "b"],
      "id": number,
      "_where": f"shades/train[{i}]",
    }


def test_tfds_sequence_of_images(tfds_dir):
  source = sources.Tfds("shades", "train", tfds_dir, image_key="frames")
  for i in range(len(source)):
    assert source[i]["image"] == [png(source[i]["id"]), png(9)]


def test_tfds_split_and_pickle(tfds_dir):
  source = sources.make(
    "tfds",
    name="shades",
    split="train[:40%]",
    data_dir=tfds_dir,
    image_key="picture",
  )
  assert len(source) == 2
  assert ids(pickle.loads(pickle.dumps(source))) == ids(source)


def test_tfds_in_tfrecord_files(tfds_dir, tmp_path):
  """TFDS writes these with TensorFlow alone: its records, framed anew."""
  (folder,) = tfds_dir.glob("shades/*")
  out = tmp_path / "shades" / folder.name
  out.mkdir(parents=True)
  for name in ("dataset_info.json", "features.json"):
    text = (folder / name).read_text()
    (out / name).write_text(text.replace("array_record", "tfrecord"))
  (path,) = folder.glob("*.array_record*")
  records = array_record_module.ArrayRecordReader(str(path)).read_all()
  path = out / path.name.replace("array_record", "tfrecord")
  writer = record_writer.RecordWriter(str(path))
  for record in records:
    writer.write(record)
  writer.close()
  key = dict(image_key="picture")
  for split in ("train", "train[40%:]"):
    expected = sources.Tfds("shades", split, tfds_dir, **key)
    found = pickle.loads(
      pickle.dumps(sources.Tfds("shades", split, tmp_path, **key))
    )
    np.testing.assert_equal(
      [found[i] for i in range(len(found))],
      [expected[i] for i in range(len(expected))],
    )
  with pytest.raises(ValueError, match="shades/tain: Unknown split 'tain'"):
    sources.Tfds("shades", "tain", tmp_path, **key)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match="ends within record 4, copy it again"):
    sources.Tfds("shades", "train", tmp_path, **key)[0]


def test_tfds_errors(tfds_dir, tmp_path):
  def make(name="shades", split="train", data_dir=tfds_dir, key="picture"):
    return sources.Tfds(name, split, data_dir, key)

  with pytest.raises(
    ValueError, match=r"tfds shads: .*not found.* scripts.prepare --list"
  ):
    make("shads")
  # Its builder is that of TFDS, which needs TensorFlow to be made.
  with pytest.raises(ValueError, match=r"not prepared .*needs TensorFlow"):
    make("coco_captions", data_dir=tmp_path)
  with pytest.raises(
    ValueError, match="tfds shades/tain: Unknown split 'tain'"
  ):
    make(split="tain")
  with pytest.raises(ValueError, match=r'"picure", .* mean "picture"'):
    make(key="picure")
  with pytest.raises(ValueError, match=r"not prepared .* run: tfds build shad"):
    make(data_dir=tmp_path)


def test_tfds_without_its_package(monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(ValueError, match=r"tfds okvqa: needs a package: pip in"):
    sources.make("tfds", name="okvqa", split="train")


def test_a_missing_published_data_set_says_how_to_prepare_it():
  with pytest.raises(
    ValueError,
    match=r"data/okvqa/val.jsonl: .*No such file.*scripts.prepare okvqa --list",
  ):
    sources.make("jsonl", path="data/okvqa/val.jsonl")
  with pytest.raises(ValueError, match=r"No such file or directory$"):
    sources.make("jsonl", path="mine/val.jsonl")


def test_frames_of_a_video_reach_the_model(videos, tokenizer):
  line = {"video": "29.mkv", "prefix": "what", "suffix": "one"}
  source = sources.VideoJsonl(videos(line), num_frames=3, stride=4)
  through = preprocess.Preprocess(
    tokenizer, res=7, text_len=41, train=True, frames=3
  )
  image = through(source[0], np.random.default_rng(0))["image"]
  assert image.shape == (3, 7, 7, 3)
  expected = np.array([0, 4, 8]) / 127.5 - 1
  np.testing.assert_allclose(image.mean((1, 2, 3)), expected, atol=1e-6)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("[" * 100_000, "JSON with too many brackets"),
    (
      '{"image": "a\\u0000.png"}',
      "cannot read image .*png: embedded null byte",
    ),
    ("\x00", "malformed JSON at column 1"),
    (
      '{"image": "a.png", "prefix": "\\ud800"}',
      "a text holds .*half a surrogate pair",
    ),
    ('{"image": "a\\n.png"}', r"cannot read image \S*a .png: No such file"),
    ('{"image": ' + "9" * 4000 + "}", "expected a path under the key"),
    (f'{{"{"k" * 9999}": 1}}', "expected a path under the key"),
  ],
)
def test_a_line_of_any_damage_is_named(tmp_path, line, message):
  path = tmp_path / "x.jsonl"
  path.write_text(f"{line}\n")
  with pytest.raises(ValueError, match=rf"^\S*x.jsonl:1: {message}") as caught:
    sources.Jsonl(path)[0]
  assert len(str(caught.value)) < 500
