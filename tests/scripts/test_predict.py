"""Predictions without a config: those of decode, killed on the way or not."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from paligemma import api, init, io
from paligemma.checkpoints import npz
from paligemma.checkpoints.training import fingerprint
from paligemma.data import preprocess, sources, text_ops
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.decoding import decode
from paligemma.evals import predictions
from paligemma.models import paligemma
from scripts import predict as command

OPTIONS = {"max_decode_len": 3, "batch_size": 8, "text_len": 19}
KILLS = 10

# Imports once and forks then, so that a kill costs a second or two.
DRIVER = """
import json, os, random, signal, sys, time
from scripts import predict

arguments, options, whole, resumed, kills = json.loads(sys.argv[1])

def start(out):
  child = os.fork()
  if not child:
    predict.predict(*arguments, out, **options)
    os._exit(0)
  return child

def end(child):
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def size():
  return os.path.getsize(resumed) if os.path.exists(resumed) else 0

assert end(start(whole)) == 0
dice = random.Random(0)
for _ in range(kills):
  child, before = start(resumed), size()
  while size() == before:
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before it wrote"
    time.sleep(0.001)
  time.sleep(dice.random() * 0.05)
  os.kill(child, signal.SIGKILL)
  print(end(child), size())
print(end(start(resumed)), size())
"""


# Of 3 tokens there are no boxes, but beginnings.
WHOLE = ["predictions: 23, boxes: 0, with malformed boxes, which stay text: 23"]


def run(tiny, out, *, data=None, **options):
  return command.predict(
    tiny.weights, tiny.tokenizer, data or tiny.data, out, **OPTIONS | options
  )


@pytest.fixture(scope="module")
def lines(tiny, tmp_path_factory):
  path = tmp_path_factory.mktemp("whole") / "y.jsonl"
  assert run(tiny, path) == WHOLE
  return predictions.read(path, 23)


@pytest.fixture(scope="module")
def expected(tiny):
  """What decode makes of rows, on one device."""
  model, params = io.load(tiny.weights)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer)
  source = sources.Jsonl(tiny.data)

  def expected(ops=(), **options):
    to_row = preprocess.Preprocess(
      tok, res=28, text_len=19, train=False, ops=ops
    )
    rows = [to_row(x, np.random.default_rng(0)) for x in source]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    found = decode.generate(model, params, batch, max_decode_len=3, **options)
    return [
      tok.decode(ids[:n])
      for ids, n in zip(
        np.asarray(found.tokens), np.asarray(found.num_tokens), strict=True
      )
    ]

  return expected


def texts(lines):
  return [line["prediction"] for line in lines]


def test_predictions_are_those_of_decode(lines, expected):
  assert len(set(texts(lines))) > 5
  assert texts(lines) == expected()
  assert lines[6]["number"] == 6
  assert lines[6]["image"] == "6.png"
  assert lines[6]["prefix"] == "what digit"


def test_a_prompt_for_all_of_fields(tiny, tmp_path, lines, expected):
  prompt = "what is {number}"
  run(tiny, tmp_path / "y.jsonl", prompt=prompt)
  found = predictions.read(tmp_path / "y.jsonl", 23)
  assert [x["prefix"] for x in found] == [f"what is {i}" for i in range(23)]
  assert texts(found) == expected((text_ops.Format(prompt),))
  assert texts(found) != texts(lines)


def test_several_pictures_a_line(tiny, tmp_path):
  """As many in each line need no option; another number is named."""
  data = tiny.folder / "pairs.jsonl"  # beside the pictures
  pairs = [["1.png", "2.png"], ["2.png", "1.png"], ["3.png", "3.png"]]
  rows = [{"image": pair, "prefix": "what digit"} for pair in pairs]
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (said,) = run(tiny, tmp_path / "y.jsonl", data=data)
  assert said.startswith("predictions: 3, boxes: 0")
  found = predictions.read(tmp_path / "y.jsonl", 3)
  assert [line["image"] for line in found] == pairs
  asked = [[tiny.folder / name for name in pair] for pair in pairs]
  model, params = io.load(tiny.weights)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer)
  answers = api.generate(
    model, params, tok, asked, "what digit", max_decode_len=3
  )
  assert texts(found) == answers
  rows.append({"image": "1.png", "prefix": "what digit"})
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(
    ValueError, match=r"pairs.jsonl:4: expected 2 frames .* found one image; "
  ):
    run(tiny, tmp_path / "z.jsonl", data=data)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
  """A decoder alone, in a file."""
  sizes = {"width": 16, "depth": 2, "mlp_dim": 22, "head_dim": 10}
  model = paligemma.make("gemma_nano", vocab_size=1792, llm=sizes)
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("gemma") / "gemma.npz"
  npz.save(
    path,
    {
      name: rng.standard_normal(leaf.shape).astype(np.float32)
      for name, leaf in init.shapes(model, None).items()
    },
  )
  return path


def ask(tiny, gemma, out, image=None, **options):
  return command.predict(gemma, tiny.tokenizer, image, out, **OPTIONS | options)


def test_a_gemma_answers_without_pictures(tiny, gemma, tmp_path):
  prompts = ["what {digit}", "count", "1 + 1 = "]
  model, params = io.load(gemma)
  tok = tokenizer_lib.Tokenizer(tiny.tokenizer, plain=True)
  expected = api.generate(model, params, tok, None, prompts, max_decode_len=3)
  out = tmp_path / "one.jsonl"
  assert ask(tiny, gemma, out, prompt=prompts[0]) == ["predictions: 1"]
  (one,) = predictions.read(out, 1)
  assert (one["prefix"], one["prediction"]) == (prompts[0], expected[0])
  data = tmp_path / "texts.jsonl"
  rows = [{"prefix": prompt, "n": i} for i, prompt in enumerate(prompts)]
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  ask(tiny, gemma, tmp_path / "all.jsonl", data)
  assert texts(predictions.read(tmp_path / "all.jsonl", 3)) == expected
  ask(tiny, gemma, tmp_path / "n.jsonl", [data], prompt="what {n}")
  found = predictions.read(tmp_path / "n.jsonl", 3)
  assert [x["prefix"] for x in found] == ["what 0", "what 1", "what 2"]


def test_pictures_for_those_that_see_alone(tiny, gemma, tmp_path):
  out = tmp_path / "y.jsonl"
  photo = tiny.folder / "1.png"
  with refused(r"gemma.npz: is a Gemma .* alone, or .*found --image .*1.png$"):
    ask(tiny, gemma, out, [photo], prompt="what")
  with refused(r"gemma.npz: is a Gemma without image tower, .*found neither$"):
    ask(tiny, gemma, out)
  with refused(r":1: has an \"image\", kind \"text_jsonl\" is of texts alo"):
    ask(tiny, gemma, out, tiny.data)
  with refused(r"gemma.npz: holds no image tower; --draw and --format are fo"):
    ask(tiny, gemma, out, prompt="what", draw=tmp_path / "drawn")
  with refused(r": is a PaliGemma, which answers about pictures; name them wi"):
    ask(tiny, tiny.weights, out, prompt="what")
  assert not out.exists()


def refused(message):
  return pytest.raises(ValueError, match=message)


def test_a_grammar(tiny, tmp_path):
  run(tiny, tmp_path / "y.jsonl", grammar="choices('4', '2')")
  found = predictions.read(tmp_path / "y.jsonl", 23)
  assert set(texts(found)) <= {"2", "4"}


def test_photos_are_drawn(tiny, tmp_path):
  """Through the command line: a folder, boxes, pictures, another format."""
  photos = tmp_path / "photos"
  photos.mkdir()
  for i in range(3):
    (photos / f"{i}.png").write_bytes((tiny.folder / f"{i}.png").read_bytes())
  (photos / "1.jpg").write_bytes(b"no image")
  arguments = (
    *("--ckpt", tiny.weights, "--tokenizer", tiny.tokenizer),
    *("--image", photos, "--out", tmp_path / "y.jsonl"),
    *("--max_decode_len", "12", "--draw", tmp_path / "drawn"),
    *("--grammar", 'boxes(["3"])', "--format", "yolo", "--batch_size", "4"),
  )
  said = tiny.run("scripts.predict", *arguments, fails=True)
  assert "give one to all: --prompt 'caption en'" in said
  arguments = (*arguments, "--prompt", "detect 3", "--on_bad", "skip")
  said = tiny.run("scripts.predict", *arguments).splitlines()
  assert said[0].startswith("predictions: 3, ") and "1.jpg: not a " in said[0]
  found = predictions.read(tmp_path / "y.jsonl", 4)
  boxes = [item for line in found for item in line.get("objects", ())]
  assert boxes and {item["label"] for item in boxes} == {"3"}
  assert said[1:] == [
    f"{tmp_path}/y.yolo: {len(boxes)} boxes of 3 images",
    f"{tmp_path}/drawn: 3 drawn",
  ]
  drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
  assert drawn == {"0.png", "1.png", "2.png"}


def test_photos_are_neither_replaced_nor_asked_about_twice(tiny, tmp_path):
  photos = tmp_path / "photos"
  photos.mkdir()
  original = (tiny.folder / "0.png").read_bytes()
  (photos / "0.png").write_bytes(original)
  out = tmp_path / "y"
  with pytest.raises(ValueError, match=r"drawn: lies in .*photos, so its"):
    run(tiny, out, data=photos, prompt="detect 3", draw=photos / "drawn")
  with pytest.raises(ValueError, match=r"0\.png: is there, and was not drawn"):
    run(tiny, out, data=f"{photos}/*.png", prompt="detect 3", draw=photos)
  assert not out.exists()
  assert (photos / "0.png").read_bytes() == original


def test_an_empty_prompt_is_a_prompt(tiny, tmp_path):
  run(tiny, tmp_path / "y", data=tiny.folder / "0.png", prompt="")
  (line,) = predictions.read(tmp_path / "y", 1)
  assert line["prefix"] == ""


def test_photos_and_jsonl_are_not_mixed(tiny, tmp_path):
  with pytest.raises(
    ValueError, match=r"val.jsonl and 1 more, expected one JS"
  ):
    run(tiny, tmp_path / "y", data=[tiny.data, tiny.folder / "0.png"])


def test_a_seed_decides_what_is_drawn(tiny, tmp_path):
  drawn = []
  for name, seed in (("a", 0), ("b", 0), ("c", 1)):
    run(tiny, tmp_path / name, sampler="temperature(2.0)", seed=seed)
    drawn.append((tmp_path / name).read_bytes())
  assert drawn[0] == drawn[1] != drawn[2]


def test_killed_at_random_it_writes_the_same_file(tiny, tmp_path):
  data = tiny.folder / "long.jsonl"  # beside the pictures
  data.write_text(tiny.data.read_text() * 9)
  whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
  arguments = [str(path) for path in (tiny.weights, tiny.tokenizer, data)]
  options = OPTIONS | {"batch_size": 1, "sampler": "temperature(2.0)"}
  done = subprocess.run(
    [
      sys.executable,
      "-W",
      "ignore:os.fork:RuntimeWarning",
      "-c",
      DRIVER,
      json.dumps([arguments, options, str(whole), str(resumed), KILLS]),
    ],
    cwd=command.__file__.rpartition("/scripts/")[0],
    env=tiny.environment(devices=1),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  statuses, sizes = zip(
    *(map(int, line.split()) for line in done.stdout.splitlines()), strict=True
  )
  assert statuses == (*[-9] * KILLS, 0)
  assert sorted(set(sizes)) == list(sizes)  # each got further, none to the end
  assert resumed.read_bytes() == whole.read_bytes()
  assert len(predictions.read(whole, 9 * 23)) == 9 * 23


def test_an_image_that_cannot_be_read_has_no_prediction(tiny, lines, tmp_path):
  data = tmp_path / "x.jsonl"
  rows = [json.loads(x) for x in tiny.data.read_text().splitlines()]
  for row in rows:
    row["image"] = str(tiny.folder / row["image"])
  rows[5]["image"] = "none.png"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  with pytest.raises(ValueError, match=r"x.jsonl:6: cannot read image"):
    run(tiny, tmp_path / "y.jsonl", data=data)
  # What stopped at it goes on past it.
  out = tmp_path / "y.jsonl"
  (said,) = run(tiny, out, data=data, on_bad="skip")
  assert "which stay text: 22, bad examples: 1 (/" in said
  assert "x.jsonl:6: cannot read image" in said
  found = predictions.read(out, 23)
  assert "x.jsonl:6: cannot read image" in found[5]["error"]
  del found[5]
  assert texts(found) == texts(lines[:5] + lines[6:])


def test_what_is_complete_is_not_made_again(tiny, tmp_path, monkeypatch):
  run(tiny, tmp_path / "y.jsonl")
  before = (tmp_path / "y.jsonl").read_bytes()
  monkeypatch.setattr(decode, "generate", None)
  assert run(tiny, tmp_path / "y.jsonl") == WHOLE
  assert (tmp_path / "y.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"max_decode_len": 4}, "evaluator/max_decode_len was 3, now 4"),
    ({"prompt": "caption en"}, r"preprocess/ops was \[\], now \[\"Format"),
    ({"sampler": "beam(beam_size=2)"}, 'sampler was "greedy", now "beam'),
    ({"batch_size": 16}, "batch_size was 8, now 16"),
    ({"dtype": "bfloat16"}, 'dtype was null, now "bfloat16"'),
  ],
)
def test_other_options_are_refused(tiny, tmp_path, options, message):
  path = tmp_path / "y.jsonl"
  run(tiny, path)
  with pytest.raises(ValueError, match=f"y.jsonl: holds predic.*{message}.*;"):
    run(tiny, path, **options)


def test_settings_beside_the_weights_are_compared(tiny, tmp_path):
  """Where they change, half of a file would be answers of another model."""
  model, params = io.load(tiny.weights)
  capped = model.clone(llm=model.llm.clone(final_logits_softcap=3.0))
  path, out = tmp_path / "a.npz", tmp_path / "y.jsonl"
  arguments = path, tiny.tokenizer, tiny.data, out
  io.save(path, model, params)
  command.predict(*arguments, **OPTIONS)
  whole = out.read_bytes()
  out.write_bytes(whole[: len(whole) // 2])
  first = fingerprint.of(path)
  io.save(path, capped, params)
  assert fingerprint.of(path) == first
  with pytest.raises(ValueError, match="final_logits_softcap"):
    command.predict(*arguments, **OPTIONS)


def test_errors(tiny, tmp_path):
  out = tmp_path / "y.jsonl"
  with pytest.raises(ValueError, match=r'long.jsonl:1: missing key "question"'):
    (tmp_path / "long.jsonl").write_text(
      json.dumps({"image": str(tiny.folder / "0.png")})
    )
    run(tiny, out, data=tmp_path / "long.jsonl", prompt="{question}")
  with pytest.raises(
    ValueError, match=r"val.jsonl:1: prompt has 4 tokens, tex"
  ):
    run(tiny, out, prompt="what", text_len=2)
  with pytest.raises(ValueError, match=r"no.jsonl: cannot read data"):
    run(tiny, out, data="no.jsonl")
  assert not out.exists()


def test_on_several_devices(tiny, lines, tmp_path):
  assert len(jax.devices()) == 8  # `lines` are split over them
  run(tiny, tmp_path / "y.jsonl", batch_size=24)
  assert texts(predictions.read(tmp_path / "y.jsonl", 23)) == texts(lines)


def test_control_tokens_of_prompts_are_taken_off(tiny, lines, tmp_path, capsys):
  spelled = tmp_path / "spelled.jsonl"
  with spelled.open("w") as file:
    for line in tiny.data.read_text().splitlines():
      fields = json.loads(line)
      fields["image"] = str(tiny.folder / fields["image"])
      fields["prefix"] = f"<image> {fields['prefix']}\n"
      file.write(json.dumps(fields) + "\n")
  run(tiny, tmp_path / "y.jsonl", data=spelled)
  assert texts(predictions.read(tmp_path / "y.jsonl", 23)) == texts(lines)
  said = capsys.readouterr().err
  for what in ("<image>", "line break"):
    note = f"note: predict: {what} taken off: 23, the first at {spelled}:1\n"
    assert note in said
  stages = [x.split(":")[0] for x in said.splitlines() if x.endswith(" ...")]
  assert stages == [
    "finding the data ...",
    "reading the weights",
    "checking the data ...",
    f"{tmp_path}/y.jsonl",
  ]
