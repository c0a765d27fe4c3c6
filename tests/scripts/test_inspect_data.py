"""The page shows what a run would see, and each example that it cannot use."""

import base64
import dataclasses
import html.parser
import io
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from configs.gemma import forkme
from paligemma.data import location, sequence, text_ops
from scripts import inspect_data
from scripts.inspection import page, samples
from tests.trainers import tiny_config
from tests.trainers.tasks import siglip_config
from trainers.tasks import texts

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
RES = 28


class Page(html.parser.HTMLParser):
  """Pictures, spans by class, bars and texts of a page; checks its tags."""

  EMPTY = ("meta", "img")

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.spans, self.bars = [], [], [], []
    self.classes, self.texts = [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag not in self.EMPTY:
      self.open.append(tag)
    self.classes.append(attrs.get("class"))
    if tag == "img":
      self.images.append(attrs["src"])
    if tag == "span":
      self.spans.append([attrs["class"], ""])
    if tag == "path" and "fill: #" in attrs.get("style", ""):
      self.bars.append(attrs)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.EMPTY:
      self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)
    if self.open and self.open[-1] == "span":
      self.spans[-1][1] += data


def opened(url):
  kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", url).groups()
  picture = Image.open(io.BytesIO(base64.b64decode(data)))
  assert picture.format == kind.upper()
  return np.asarray(picture)


@pytest.fixture
def folder(tmp_path):
  """Eleven red and blue pictures, each with a box around the blue part."""
  lines = []
  for i in range(11):
    pixels = np.zeros((20 + i, 40, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[: 10 + i, 20:] = 0, 0, 255
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    box = location.encode_box((0, 20, 10 + i, 40), (20 + i, 40))
    lines.append(
      {"image": f"{i}.png", "prefix": "detect 1", "suffix": f"{box} 1"}
    )
  for name in ("train", "val"):
    write(tmp_path, name, lines)
  return tmp_path


def write(folder, name, lines):
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / f"{name}.jsonl").write_text(text)


def read(folder, name="train"):
  text = (folder / f"{name}.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def argument(folder, **changes):
  values = {
    "tokenizer": TOKENIZER,
    "train": folder / "train.jsonl",
    "val": folder / "val.jsonl",
    "text_len": 29,
    **changes,
  }
  return ",".join(f"{name}={value}" for name, value in values.items())


def config_of(folder, **changes):
  return tiny_config.get_config(argument(folder, **changes))


def dataset_of(config, name="train.main"):
  tok, found = inspect_data.datasets_of(config)
  return tok, next(dataset for dataset in found if dataset.name == name)


def test_datasets_are_the_training_data_and_all_evaluators(folder):
  _, found = inspect_data.datasets_of(config_of(folder))
  assert [dataset.name for dataset in found] == [
    "train.main",
    "evals.pplx",
    "evals.val",
  ]


def test_a_config_without_evaluators(folder):
  config = config_of(folder)
  config.evals = {}
  _, lines = inspect_data.inspect(config, num=1)
  assert len(lines) == 1


def test_tokens_tell_prompt_answer_and_padding(folder):
  tok, dataset = dataset_of(config_of(folder))
  sample = samples.look(dataset, tok, 3)
  row = dataset.preprocess(dataset.source[3], np.random.default_rng(3))
  supervised = row["mask_loss"].astype(bool)
  kinds = [token.kind for token in sample.texts.tokens]
  expected = np.where(supervised, "supervised", "prompt")
  assert kinds == expected[row["mask_input"]].tolist()
  # Four locations, a space, a label, and the end.
  assert kinds.count("supervised") == 7
  assert len(kinds) + sample.texts.padding == 30
  pieces = [token.text for token in sample.texts.tokens]
  assert pieces[0] == "<bos>" and pieces[-1] == "<eos>"
  assert "".join(pieces[1:-1]) == "detect 1\n" + read(folder)[3]["suffix"]


def test_what_is_to_be_predicted_is_not_among_the_tokens(folder):
  tok, dataset = dataset_of(config_of(folder), "evals.val")
  sample = samples.look(dataset, tok, 3)
  assert {token.kind for token in sample.texts.tokens} == {"prompt"}
  assert sample.texts.tokens[-1].text == "\n"
  assert sample.texts.labelled[1] == ("answer", read(folder)[3]["suffix"])


def test_tokens_of_the_answer_that_are_not_in_the_loss(folder):
  config = config_of(folder)
  config.train.ops = (
    lambda example, rng: {**example, "unsupervised": [(0, 18)]},
  )
  tok, dataset = dataset_of(config)
  kinds = [token.kind for token in samples.look(dataset, tok, 3).texts.tokens]
  assert kinds == ["prompt"] * 5 + ["unsupervised"] * 2 + ["supervised"] * 5


def test_pieces_keep_their_spaces(tokenizer):
  text = "what digit is\nthis <loc0042>\u00e9"
  row = sequence.prompt(tokenizer, text, 64)
  pieces = [token.text for token in texts.tokens(tokenizer, row)[0]]
  assert "<loc0042>" in pieces
  shown = "".join(piece for piece in pieces if "\ufffd" not in piece)
  assert shown == "<bos>" + text.removesuffix("\u00e9") + "\n"


def test_frames_are_the_images_of_the_row(folder):
  tok, dataset = dataset_of(config_of(folder))
  row = dataset.preprocess(dataset.source[5], np.random.default_rng(5))
  (frame,) = samples.look(dataset, tok, 5).frames
  assert frame.shape == (RES, RES, 3) and frame.dtype == np.uint8
  np.testing.assert_allclose(
    frame / 127.5 - 1, row["image"], atol=1 / 255 + 1e-6
  )


def test_boxes_lie_on_what_they_name(folder):
  tok, dataset = dataset_of(config_of(folder))
  for index in (0, 10):
    sample = samples.look(dataset, tok, index)
    (thing,) = sample.objects
    y0, x0, y1, x1 = (round(corner) for corner in thing["box"])
    blue = sample.frames[0][..., 2] > 127
    inside = np.zeros_like(blue)
    inside[y0:y1, x0:x1] = True
    assert (blue != inside).mean() < 0.02


def test_random_ops_choose_alike_for_text_and_image(folder):
  config = config_of(folder)
  config.train.ops = (
    lambda example, rng: {**example, "prefix": f"detect {rng.integers(10**6)}"},
  )
  tok, dataset = dataset_of(config)
  sample = samples.look(dataset, tok, 2)
  assert "".join(t.text for t in sample.texts.tokens).startswith(
    f"<bos>{sample.texts.labelled[0][1]}\n"
  )


def test_lengths(folder):
  lines = read(folder)
  lines[4]["prefix"] = "detect" + " 1" * 20
  lines[6]["suffix"] = "1 " * 50
  lines[7]["prefix"] = 5
  write(folder, "train", lines)
  tok, dataset = dataset_of(config_of(folder))
  lengths, bad = samples.measure(dataset, tok)
  assert (bad, len(lengths)) == (1, 10)
  expected = []
  for line in lines[:7] + lines[8:]:
    prompt = len(tok.encode(line["prefix"], bos=True)) + 1
    both = prompt + len(tok.encode(line["suffix"])) + 1
    expected.append([prompt, both])
  assert sorted(lengths.tolist()) == sorted(expected)
  assert inspect_data.too_long(dataset, lengths) == 2


def test_measuring_ends_in_time(folder, monkeypatch):
  tok, dataset = dataset_of(config_of(folder))
  monkeypatch.setattr(samples, "SECONDS", -1.0)
  assert not len(samples.measure(dataset, tok)[0])
  text, _ = inspect_data.inspect(config_of(folder), num=1)
  assert Page(text).images  # without histograms


def test_what_is_too_long_to_be_decoded(folder):
  config = config_of(folder)
  config.evals.val.max_decode_len = 5
  tok, dataset = dataset_of(config, "evals.val")
  lengths, _ = samples.measure(dataset, tok)
  assert set(lengths[:, 1].tolist()) == {7}
  assert inspect_data.too_long(dataset, lengths) == 11
  config.evals.val.max_decode_len = 6  # all but the end of the answer
  tok, dataset = dataset_of(config, "evals.val")
  assert inspect_data.too_long(dataset, lengths) == 0


def test_examples_that_cannot_be_used_are_shown_with_their_error(folder):
  lines = read(folder)
  lines[0]["image"] = "gone.png"
  lines[1]["suffix"] = "1 " * 50
  del lines[2]["suffix"]
  write(folder, "train", lines)
  text, summaries = inspect_data.inspect(config_of(folder))
  assert "11 shown, 3 of these cannot be used; 1 of 10" in summaries[0]
  shown = Page(text)
  assert shown.classes.count("card bad") == 3
  joined = "".join(shown.texts)
  assert "train.jsonl:1: cannot read image" in joined
  assert "train.jsonl:2: prompt and answer have" in joined
  assert 'train.jsonl:3: missing key "suffix"' in joined


def test_truncated_answers_are_marked(folder):
  lines = read(folder)
  lines[0]["suffix"] = "1 " * 50
  write(folder, "train", lines)
  config = config_of(folder)
  config.train.too_long = "truncate"
  tok, dataset = dataset_of(config)
  shown = [samples.look(dataset, tok, i).texts.labelled[1][0] for i in (0, 1)]
  assert shown == ["answer (cut to fit)", "answer"]
  text, _ = inspect_data.inspect(config)
  assert "(cut to fit)" in text


def test_page_stands_alone(folder):
  text, _ = inspect_data.inspect(config_of(folder), num=4, title="a & b")
  shown = Page(text)
  assert len(shown.images) == 3 * 4
  for url in shown.images:
    assert opened(url).shape == (page.SIDE, page.SIDE, 3)
  assert "a & b" in shown.texts
  assert "<script" not in text and "://" not in text
  kinds = [kind for kind, _ in shown.spans[3:]]  # behind the legend
  assert set(kinds) == {"prompt", "supervised", "padding"}
  assert ["padding", "18 of padding"] in shown.spans


def test_texts_of_the_data_are_escaped(folder):
  lines = [{**x, "prefix": "<b>1</b> &amp;"} for x in read(folder)]
  write(folder, "train", lines)
  write(folder, "val", lines)
  text, _ = inspect_data.inspect(config_of(folder, text_len=53), num=2)
  shown = Page(text)
  assert " <b>1</b> &amp;" in shown.texts
  assert "<b>1</b>" not in text


def drawn_in(sample):
  """Which pixels of an image of RES pixels the objects of a card change."""
  bare = dataclasses.replace(sample, objects=())
  shown, before = (
    opened(Page(page.card(x)).images[0]).astype(int) for x in (sample, bare)
  )
  changed = np.abs(shown - before).max(-1) > 32
  scale = page.SIDE // RES
  return changed.reshape(RES, scale, RES, scale).any((1, 3))


def test_boxes_are_drawn(folder):
  tok, dataset = dataset_of(config_of(folder))
  drawn = drawn_in(samples.look(dataset, tok, 0))
  assert drawn[0, 14:].all() and drawn[13, 15:].all()
  assert drawn[:14, 14].all() and drawn[:14, 27].all()
  assert not drawn[3:11, 17:25].any() and not drawn[:, :12].any()


def test_masks_are_drawn_in_their_boxes(folder):
  codes = "".join(f"<seg{i:03d}>" for i in range(16))
  lines = read(folder)
  for line in lines:
    line["suffix"] = line["suffix"].replace(" 1", f"{codes} 1")
  write(folder, "train", lines)
  seen = []

  def decode(batch):
    seen.append(batch)
    mask = np.full((1, 64, 64), -1.0, np.float32)
    mask[:, :32] = 1  # the upper half
    return mask

  tok, dataset = dataset_of(config_of(folder))
  assert not drawn_in(samples.look(dataset, tok, 0))[3:6, 17:25].any()
  drawn = drawn_in(samples.look(dataset, tok, 0, decode))
  np.testing.assert_array_equal(seen[0], [range(16)])
  assert drawn[:7, 14:].all() and not drawn[8:12, 17:25].any()


def test_boxes_without_area_are_named(folder):
  lines = read(folder)
  for line in lines:
    line["suffix"] += " ; <loc0500><loc0500><loc0500><loc0600> 2"
  write(folder, "train", lines)
  tok, dataset = dataset_of(config_of(folder))
  sample = samples.look(dataset, tok, 0)
  assert len(sample.objects) == 1
  assert sample.malformed == ("2: box without area",)
  assert "2: box without area" in Page(page.card(sample)).texts


@pytest.mark.parametrize(
  ("values", "limit", "red"),
  [
    ([3, 3, 5], None, 0),
    ([3, 3, 5], 5, 0),
    ([3, 3, 5], 4, 1),
    ([4, 5, 700], 4, 2),
  ],
)
def test_histogram(values, limit, red):
  shown = Page(page.histogram("tokens", np.array(values), limit))
  assert len(shown.bars) == len(set(values))
  assert sum("#dc2626" in bar["style"] for bar in shown.bars) == red
  heights = []
  for bar in shown.bars:
    _, *corners = re.findall(r"[-\d.]+ ([-\d.]+)", bar["d"])
    heights.append(np.ptp(np.array(corners, float)))
  counts = [values.count(value) for value in sorted(set(values))]
  assert heights == pytest.approx(
    [max(heights) * count / max(counts) for count in counts]
  )


def test_histogram_of_nothing():
  assert page.histogram("tokens", np.array([], int), 5) == ""


def test_frames_of_a_video(folder):
  config = config_of(folder)
  config.frames = 3
  config.train.ops = (
    lambda example, rng: {**example, "image": [example["image"]] * 3},
  )
  tok, dataset = dataset_of(config)
  sample = samples.look(dataset, tok, 0)
  assert not sample.problem and len(sample.frames) == 3
  text = page.card(sample)
  assert len(Page(text).images) == 3


def test_several_answers(folder):
  lines = [{**x, "answers": ["1 1 1", "2"]} for x in read(folder)]
  write(folder, "val", lines)
  config = config_of(folder)
  config.evals.val.answer_key = "answers"
  config.evals.val.ops = (text_ops.Format("detect {prefix}"),)
  tok, dataset = dataset_of(config, "evals.val")
  sample = samples.look(dataset, tok, 0)
  assert sample.texts.labelled == [
    ("prompt", "detect detect 1"),
    ("answer", "1 1 1"),
    ("or", "2"),
  ]
  # The shortest will do.
  assert samples.measure(dataset, tok)[0][0, 1] == len(tok.encode("2")) + 1


CAPTIONS = [
  {"image": "0.png", "captions": ["A Red wall", "a wall"]},
  {"image": "1.png", "suffix": "a wall"},
  {"image": "2.png", "suffix": "a wall that is red and blue and red"},
]


@pytest.mark.parametrize("variant", ["siglip_tiny", "siglip2_b16_naflex"])
def test_captions_of_a_siglip(folder, variant):
  write(folder, "train", CAPTIONS)
  write(folder, "val", CAPTIONS)
  paths = f"train={folder}/train.jsonl,val={folder}/val.jsonl,label="
  config = siglip_config.get_config(f"{paths},tokenizer={TOKENIZER}")
  if variant.endswith("naflex"):
    config.model.variant, config.max_patches = variant, 12
    config.model.txt.vocab_size = 1792
  config.train.too_long = "truncate"
  tok, dataset = dataset_of(config)
  shown = [samples.look(dataset, tok, i) for i in range(3)]
  drawn = shown[0].texts.labelled
  assert ("caption, drawn, of 2 images", "a wall") in drawn or (
    drawn[:2] == [("caption, drawn", "A Red wall"), ("read as", "a red wall")]
  )
  assert shown[1].texts.labelled == [
    ("caption, drawn, of 2 images", "a wall"),
  ]
  pieces = [token.text for token in shown[1].texts.tokens]
  assert ("".join(pieces[:-1]).strip(), pieces[-1]) == ("a wall", "<eos>")
  assert shown[1].texts.padding == 10 - len(pieces)
  assert shown[2].texts.labelled[0][0] == "caption, drawn (cut to fit)"
  assert not shown[2].texts.padding
  lengths, _ = samples.measure(dataset, tok)
  assert inspect_data.too_long(dataset, lengths) == 1
  (frame,) = shown[2].frames
  # A NaFlex keeps the aspect ratio of 22 x 40 pixels.
  assert frame.shape == (28, 28, 3) or variant.endswith("naflex")
  assert (frame[-1, :, 2] < 128).all() and (frame[0, -1] == (0, 0, 255)).all()
  text, lines = inspect_data.inspect(config, num=3)
  assert lines[0].endswith("0 of these cannot be used; 1 of 3 are too long")
  assert lines[1].endswith("0 of these cannot be used")
  assert "1 of 3 captions belong to several" in "".join(Page(text).texts)


@pytest.mark.parametrize("packing", [True, False])
def test_texts_of_a_gemma_alone(folder, packing):
  write(folder, "train", [{"text": "1 2 3"}, {"prefix": "4 ", "suffix": "5"}])
  config = forkme.get_config(
    f"variant=gemma_nano,tokenizer={TOKENIZER},train={folder}/train.jsonl,"
    f"val={folder}/train.jsonl,text_len=31,answers=true,packing={packing}"
  )
  tok, dataset = dataset_of(config)
  indices = samples.draw(dataset, 5)
  shown = [samples.look(dataset, tok, i) for i in indices]
  if packing:
    (row,) = shown
    kinds = [(x.text, x.kind) for x in row.texts.tokens]
    starts = [i for i, (_, kind) in enumerate(kinds) if kind == "start"]
    assert [kinds[i][0] for i in starts] == ["text 1", "text 2"]
    assert all(kinds[i + 1] == ("<bos>", "unsupervised") for i in starts)
    assert len(kinds) - 2 + row.texts.padding == 32
  else:
    alone, prompted = (x.texts for x in shown)
    assert alone.labelled == [("answer", "1 2 3")]
    assert {x.kind for x in alone.tokens[1:]} == {"supervised"}
    assert prompted.labelled == [("prompt", "4 "), ("answer", "5")]
  text, lines = inspect_data.inspect(config)
  assert not Page(text).images
  assert ("1 rows shown" if packing else "2 shown") in lines[0]


def command(monkeypatch, config, *arguments):
  name = ROOT / "tests/trainers/tiny_config.py"
  flag = f"--config={name}:{config}"
  monkeypatch.setattr(sys, "argv", ["inspect_data", flag, *arguments])
  parsed = []

  def parse(parser):
    options = parser.parse_args(sys.argv[2:])
    parsed.append(options)
    return options, tiny_config.get_config(config)

  monkeypatch.setattr(inspect_data.command_line, "parse", parse)
  inspect_data.main()


def test_command(folder, monkeypatch, capsys):
  out = folder / "page.html"
  command(monkeypatch, argument(folder), f"--out={out}", "--num=2")
  printed = capsys.readouterr().out.splitlines()
  assert printed == [
    *(
      f"{name}: 11 examples, 2 shown, 0 of these cannot be used; 0 of 11 are "
      "too long"
      for name in ("train.main", "evals.pplx")
    ),
    "evals.val: 11 examples, 2 shown, 0 of these cannot be used; 11 of 11 are "
    "too long",
    f"written to {out}",
  ]
  assert len(Page(out.read_text()).images) == 6


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train": "no.jsonl"}, r"no\.jsonl: cannot read data"),
    ({"tokenizer": "no.model"}, r"no\.model: cannot read tokenizer"),
  ],
)
def test_bad_configs(folder, changes, message):
  with pytest.raises(ValueError, match=message) as info:
    inspect_data.inspect(config_of(folder, **changes))
  assert "\n" not in str(info.value)


def test_no_example_to_show(folder):
  with pytest.raises(ValueError, match="--num is 0, expected at least 1"):
    inspect_data.inspect(config_of(folder), num=0)
