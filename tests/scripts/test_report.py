"""The page about runs: what it shows, and of whatever state they are in."""

import collections
import html.parser
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from paligemma.data import location, objects
from scripts import report
from trainers import run_answers, run_files, run_page, status

SIZE = 40, 60
STEPS = 0, 10, 20
EXAMPLES = 11
VOID = {"br", "img", "meta"}


def boxes(*items):
  """The text of boxes (y0, x0, y1, x1) in a picture of SIZE, with labels."""
  found = [location.Object(box, label) for box, label in items]
  return location.encode(found, SIZE)


def write_lines(path, lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def evaluate(folder, step, records, **scores):
  """Writes what an evaluation of `val` leaves; returns its line of metrics."""
  write_lines(folder / f"val/predictions-{step}.jsonl", records)
  write_lines(folder / "val/predictions.jsonl", records)
  scores = {"num_examples": len(records), **scores}
  return {"step": step, **{f"val/{k}": v for k, v in scores.items()}}


def detections(step):
  """Answers that get better: the share step / 20 of them has the right label,
  and the others are dogs."""
  records = []
  for i in range(EXAMPLES):
    place = (5, 10 + i, 30, 40 + i)
    is_right = i < step / 20 * EXAMPLES
    label = "a cat" if i % 2 else "a cow"
    records.append(
      {
        "image": f"{i}.png",
        "prefix": "detect animals",
        "suffix": boxes((place, label)),
        "height": SIZE[0],
        "width": SIZE[1],
        "where": f"val.jsonl:{i + 1}",
        "index": i,
        "prediction": boxes((place, label if is_right else "a dog")),
        "score": -0.5 - i,
        "confidences": [0.9 - i / 20],
        "correct": is_right,
      }
    )
  return records


@pytest.fixture
def make_run(tmp_path):
  """Makes a run that has finished, of detection in drawn pictures."""
  rng = np.random.default_rng(0)
  data = tmp_path / "data"
  data.mkdir()
  for i in range(EXAMPLES):
    pixels = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(data / f"{i}.png")

  def make(name, learning_rate=0.03, records=detections):
    folder = tmp_path / name
    source = {"kind": "jsonl", "path": str(data / "val.jsonl")}
    config = {
      "batch_size": 4,
      "learning_rate": learning_rate,
      "evals": {"val": {"kind": "generate", "source": source}},
    }
    lines = [evaluate(folder, 0, records(0), AP50=0.0)]
    for step in range(1, 21):
      line = {"step": step, "loss": 1 / step, "learning_rate": learning_rate}
      lines.append(line | {"examples_per_second": 8.0, "skipped": 0})
      if step in STEPS:
        lines.append(evaluate(folder, step, records(step), AP50=step / 20))
    write_lines(folder / "metrics.jsonl", lines)
    (folder / "config.json").write_text(json.dumps(config))
    ended = {"state": "finished", "step": 20, "total_steps": 20}
    (folder / "status.json").write_text(json.dumps(ended))
    return folder

  return make


@pytest.fixture
def write(monkeypatch, capsys):
  """Runs the command; returns the page and the lines that it prints."""

  def run(*arguments):
    monkeypatch.setattr("sys.argv", ["report", *map(str, arguments)])
    report.main()
    lines = capsys.readouterr().out.splitlines()
    path = re.fullmatch(r"report: (\S+) written", lines[-1])[1]
    with open(path) as file:
      return file.read(), lines

  return run


class Page(html.parser.HTMLParser):
  """What a page holds; its elements must be closed in order.

  Attributes:
    texts: all that is read, in order.
    rows: the texts of the cells of each row of a table.
    pictures: number of them.
    ids, addresses: values of all attributes that are one.
  """

  def __init__(self, text):
    super().__init__()
    self.texts, self.rows, self.pictures = [], [], 0
    self.tags, self.ids, self.addresses = collections.Counter(), [], []
    self._open = []
    self.feed(text)
    self.close()
    assert not self._open

  def handle_starttag(self, tag, attributes):
    self.tags[tag] += 1
    if tag not in VOID:
      self._open.append(tag)
    found = dict(attributes)
    assert len(found) == len(attributes), f"twice the same in {attributes}"
    self.ids += [found["id"]] if "id" in found else []
    self.addresses += [found[x] for x in ("src", "href") if x in found]
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th"):
      self.rows[-1].append("")

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in VOID:
      self._open.pop()

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)
    if "td" in self._open or "th" in self._open:
      self.rows[-1][-1] += data


def test_what_the_page_shows(make_run, write):
  text, lines = write(make_run("cats"))
  page, joined = Page(text), " ".join(Page(text).texts)
  assert "Report of cats" in joined
  assert "step 20 of 20, 100%: finished" in joined
  (row,) = (row for row in page.rows if row[0] == "val/AP50")
  assert row[2:] == ["0step 0", "1 [1, 1]step 20", "1 [1, 1]step 20", "11"]
  # loss, learning rate, AP50, examples and seconds a step.
  assert page.tags["svg"] == page.tags["figure"] - 6 * 4 == 5
  assert "skipped" not in joined
  assert page.tags["img"] == 6 * 4  # the truth, and the answers of three steps
  for heading in ("step 0", "step 10", "step 20"):
    assert joined.count(f"{heading} ") >= 6
  assert "Worst errors" not in joined  # there are none
  assert [row for row in page.rows if row[0].startswith("a c")][-2:] == [
    ["a cat", "5", "5", "1", "1"],
    ["a cow", "6", "6", "1", "1"],
  ]
  assert ["learning_rate", "0.03"] in page.rows
  assert lines[:-1] == [
    "cats: step 20 of 20, 100%: finished",
    "cats: val/AP50 0 at step 0, 1 [1, 1] at step 20, n=11",
  ]


def test_every_number_of_a_curve_is_a_text(make_run, write):
  page = Page(write(make_run("cats"))[0])
  steps = [row for row in page.rows if row[0].isdecimal() and len(row) == 5]
  assert [float(row[1]) for row in steps] == [
    pytest.approx(1 / step, rel=1e-3) for step in range(1, 21)
  ]
  assert {row[-1] for row in steps} == {"0.5"}  # 4 examples, 8 a second


def test_errors_are_shown_with_what_is_taken_for_what(make_run, write):
  folder = make_run("cats", records=lambda step: detections(step / 2))
  page = Page(write(folder)[0])
  joined = " ".join(page.texts)
  _, worst = joined.split("Worst errors")
  assert worst.count("1 wrong, 1 missed") == EXAMPLES - 6
  # The surest first.
  assert worst.index("val.jsonl:7") < worst.index("val.jsonl:11")
  rows = {row[0]: row[1:] for row in page.rows if len(row) == 4}
  assert rows["truth"] == ["a cat", "a cow", "a dog"]
  assert rows["a cat"] == ["3", "", "2"]
  assert rows["a cow"] == ["", "3", "3"]


def test_a_confusion_of_boxes_has_missed_and_false_ones(make_run):
  place = (5, 10, 30, 40)
  record = detections(20)[0] | {
    "suffix": boxes((place, "a"), ((1, 1, 9, 9), "b")),
    "prediction": boxes((place, "c"), ((30, 40, 39, 59), "d")),
    "confidences": [0.5, 0.5],
  }
  folder = make_run("cats", records=lambda step: [record])
  evaluation = run_files.read(folder).evaluations["val"]
  assert run_answers.confusion(run_answers.score(evaluation, 20)) == {
    ("a", "c"): 1,
    ("b", "(nothing)"): 1,
    ("(nothing)", "d"): 1,
  }


def test_rare_labels_are_one_row_of_a_confusion(make_run, monkeypatch):
  monkeypatch.setattr(run_answers, "LABELS", 1)
  folder = make_run("cats", records=lambda step: detections(step / 2))
  evaluation = run_files.read(folder).evaluations["val"]
  assert run_answers.confusion(run_answers.score(evaluation, 20)) == {
    ("a cow", "a cow"): 3,
    ("a cow", "(others)"): 3,
    ("(others)", "(others)"): 5,
  }


def answers(step):
  """Texts of which the share step / 20 is right, and the others are "no"."""
  return [
    record
    | {
      "suffix": ["7", "seven"] if i % 2 else "3",
      "prediction": ("seven" if i % 2 else "3") if record["correct"] else "no",
      "confidences": [],
    }
    for i, record in enumerate(detections(step))
  ]


def test_texts_are_compared_too(make_run, write):
  folder = make_run("texts", records=lambda step: answers(step / 2))
  page = Page(write(folder)[0])
  rows = {row[0]: row[1:] for row in page.rows if len(row) == 5}
  assert rows["truth"] == ["3", "7", "no", "seven"]
  assert rows["3"] == ["3", "", "3", ""]
  assert rows["7"] == ["", "", "2", ""]
  assert rows["seven"] == ["", "", "", "3"]
  assert page.tags["img"] == 6 + EXAMPLES - 6  # no boxes: one for all steps


def test_captions_have_no_table_of_confusion(make_run):
  def captions(step):
    texts = ({"suffix": f"a {i}", "prediction": f"b {i}"} for i in range(11))
    return [a | b for a, b in zip(answers(step), texts, strict=True)]

  folder = make_run("captions", records=captions)
  evaluation = run_files.read(folder).evaluations["val"]
  assert run_answers.confusion(run_answers.score(evaluation, 20)) is None


def test_several_runs_are_side_by_side(make_run, write, tmp_path):
  folders = make_run("slow", 0.001), make_run("fast", 0.1)
  out = tmp_path / "both.html"
  text, lines = write(*folders, "--out", out)
  assert lines[-1] == f"report: {out} written"
  page = Page(text)
  assert ["learning_rate", "0.001", "0.1"] in page.rows
  assert not any(row[0] == "batch_size" and len(row) == 3 for row in page.rows)
  assert [row[:2] for row in page.rows if row[0] == "val/AP50"] == [
    ["val/AP50", "slow"],
    ["val/AP50", "fast"],
  ]
  assert page.tags["svg"] == 5
  assert page.tags["img"] == 6 * 3  # the truth, and the last answer of each


def test_runs_of_one_name_are_told_apart(make_run, write):
  folders = make_run("a/run"), make_run("b/run")
  _, lines = write(*folders)
  assert [line.partition(": ")[0] for line in lines[:2]] == list(
    map(str, folders)
  )


def test_runs_on_different_data_share_no_pictures(make_run, write):
  def others(step):
    return [record | {"where": "other"} for record in detections(step)]

  text, _ = write(make_run("a"), make_run("b", records=others))
  assert "img" not in Page(text).tags
  assert "have no example in common" in text


OWN = {"host": socket.gethostname(), "pid": os.getppid()}
DEAD = {"host": socket.gethostname(), "pid": 2**22 + 1}


@pytest.mark.parametrize(
  ("state", "lock", "expected"),
  [
    ("running", OWN, "still running"),
    ("finished", OWN, "still running"),  # it was started again just now
    ("running", DEAD, "killed, or its machine went down"),
    ("running", None, "killed, or its machine went down"),
    ("running", {"host": "another"}, "still running"),
    ("stopped", None, "stopped, as it was asked to"),
    ("ended early", None, "ended early"),
    ("failed", None, "failed: step 13: loss is nan"),
    (None, None, "how it ended is not recorded"),
  ],
)
def test_how_far_a_run_has_come(make_run, write, state, lock, expected):
  folder = make_run("cats")
  (folder / "status.json").unlink()
  if state is not None:
    found = {"state": state, "step": 0, "total_steps": 80}
    found |= {"error": "step 13: loss is nan"} if state == "failed" else {}
    (folder / "status.json").write_text(json.dumps(found))
  if lock is not None:
    (folder / "trainer.lock").write_text(json.dumps(lock))
  text, lines = write(folder)
  total = "" if state is None else " of 80, 25%"
  assert lines[0] == f"cats: step 20{total}: {expected}"
  assert lines[0].removeprefix("cats: ") in text


def test_an_old_sign_of_life_of_another_host_is_none(make_run):
  folder = make_run("cats")
  path = folder / "trainer.lock"
  path.write_text('{"host": "another"}')
  os.utime(path, (0, 0))
  assert status.read(folder).state == "finished"


def test_a_run_that_was_killed_while_it_wrote(make_run, write):
  """Half a line of metrics, and evaluations of which only half was written."""
  folder = make_run("cats")
  path = folder / "metrics.jsonl"
  lines = path.read_text().splitlines()
  path.write_text("\n".join([*lines[:4], lines[4][:9]]))
  (folder / "status.json").write_text('{"state": "running", "step"')
  (folder / "checkpoints/2").mkdir(parents=True)
  (folder / "checkpoints/2.orbax-checkpoint-tmp-0").mkdir()
  text, printed = write(folder)
  assert printed[:2] == [
    "cats: step 3: how it ended is not recorded",
    f"cats: {path}:5: damaged, left out",
  ]
  assert "last checkpoint: that of step 2" in text


@pytest.mark.parametrize(
  ("name", "content", "expected"),
  [
    ("config.json", None, "config.json: is missing"),
    ("config.json", "{", "config.json:1: damaged, Expecting property name"),
    ("config.json", '{"train": {"ops": 3}}', "no config of a run"),
    ("best.json", "[]", "best.json:1: holds no object"),
    ("history.jsonl", '{"step": 3}', "history.jsonl:1: damaged"),
    ("metrics.jsonl", None, "nothing is measured yet"),
    ("metrics.jsonl", "", "nothing is measured yet"),
    ("metrics.jsonl", '{"step": 1e999}', "metrics.jsonl:1: damaged, left out"),
    ("metrics.jsonl", '{"step": 3, "loss": "x"}', "nothing is measured yet"),
    ("val/predictions-20.jsonl", "{\n", "predictions-20.jsonl:1: not JSON"),
    ("val/predictions-10.jsonl", "{\n", "predictions-10.jsonl:1: not JSON"),
    ("val/predictions-10.jsonl", None, "predictions-10.jsonl: is missing"),
  ],
)
def test_what_is_damaged_is_one_line(make_run, write, name, content, expected):
  folder = make_run("cats")
  if content is None:
    (folder / name).unlink()
  else:
    (folder / name).write_text(content)
  text, _ = write(folder)
  assert sum(expected in x for x in Page(text).texts) == 1
  assert "Traceback" not in text


def test_predictions_of_the_last_step_are_enough(make_run, write):
  """As of a run by an older version."""
  folder = make_run("cats")
  for step in STEPS:
    (folder / f"val/predictions-{step}.jsonl").unlink()
  page = Page(write(folder)[0])
  assert page.tags["img"] == 6 * 2
  (folder / "val/predictions.jsonl").unlink()
  text, _ = write(folder)
  assert "img" not in Page(text).tags
  assert "No predictions to show" in text and "jsonl: is missing" in text


def test_pictures_that_are_gone_leave_a_frame(make_run, write, tmp_path):
  folder = make_run("cats")
  (tmp_path / "data/0.png").unlink()
  (tmp_path / "data/10.png").write_bytes(b"none")
  text, _ = write(folder)
  assert Page(text).tags["img"] == 4 * 4
  assert "no picture: val.jsonl:1: cannot read image" in text
  assert "no picture: val.jsonl:11: not a readable image: 4 bytes" in text
  shutil.rmtree(tmp_path / "data")
  assert write(folder)[0].count("no picture") == 6


def test_a_record_that_fits_nothing_is_shown_as_a_text(make_run, write):
  """Two confidences for one box, and a score that cannot be computed."""

  def broken(step):
    return [record | {"confidences": [0.5, 0.4]} for record in detections(step)]

  text, _ = write(make_run("cats", records=broken))
  assert Page(text).tags["img"] == 6 + run_answers.WORST
  assert "confidences are [0.5, 0.4], expected one finite number" in text


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("none", "none: no such folder, expected that of a run"),
    ("data", "data: holds no run that has begun, expected config.json or"),
  ],
)
def test_what_is_no_run_is_an_error(make_run, write, tmp_path, name, message):
  make_run("cats")
  with pytest.raises(ValueError, match=message):
    write(tmp_path / name)
  assert not (tmp_path / name / "report.html").exists()


def test_at_the_end_of_a_run_a_failure_is_one_line(
  make_run, capsys, monkeypatch
):
  folder = make_run("cats")
  run_page.write_at_end(folder)
  assert capsys.readouterr().err == f"wrote {folder}/report.html\n"
  before = (folder / "report.html").read_text()
  monkeypatch.setattr(
    run_page.run_curves, "draw", lambda *_: [][1], raising=True
  )
  run_page.write_at_end(folder)
  assert capsys.readouterr().err == (
    "warning: no report.html: list index out of range\n"
  )
  assert (folder / "report.html").read_text() == before


def test_two_reports_at_once_leave_a_whole_one(make_run):
  folder = make_run("cats")
  command = [sys.executable, "-m", "scripts.report", str(folder)]
  running = [
    subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)
  ]
  assert [process.wait(timeout=300) for process in running] == [0, 0]
  assert "svg" in Page((folder / "report.html").read_text()).tags
  assert not list(folder.glob(".*"))


def test_texts_of_users_are_no_html(make_run, write):
  def hostile(step):
    text = '<script>x</script><img src="https://example.org/a">\n\0\ud83d'
    found = {"suffix": text, "prediction": text + "!", "prefix": text * 99}
    return [record | found for record in answers(step)]

  page = Page(write(make_run("<b>cats", records=hostile))[0])
  assert not {"script", "b>cats"} & set(page.tags)
  assert all(x.startswith(("data:image/jpeg", "#c")) for x in page.addresses)


def test_the_page_is_whole(make_run, write):
  text, _ = write(make_run("a", 0.1), make_run("b", 0.2))
  page = Page(text)
  assert len(page.ids) == len(set(page.ids))
  references = {x for x in page.addresses if x.startswith("#")}
  references |= set(re.findall(r"url\((#[^)]*)\)", text))
  assert references == {f"#{x}" for x in page.ids}


def test_a_browser_finds_no_fault_and_nothing_to_fetch(
  make_run, write, tmp_path
):
  """The page forbids every request; a browser that is tempted says so."""
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  if chromium is None:
    pytest.skip("Chromium is not installed")
  text, _ = write(make_run("cats"))
  tempted = text.replace("<h1>", '<img src="https://example.org/a.png"><h1>')
  complaints = {}
  for name, content in (("good", text), ("bad", tempted)):
    path = tmp_path / f"{name}.html"
    path.write_text(content)
    done = subprocess.run(
      [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'chromium'}",
        "--dump-dom",
        f"file://{path}",
      ],
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert "step 20 of 20, 100%: finished" in done.stdout
    complaints[name] = re.findall(r"CONSOLE.*", done.stderr)
  assert complaints["good"] == []
  (complaint,) = complaints["bad"]
  assert "https://example.org/a.png" in complaint


def test_masks_are_drawn_with_their_codec(make_run):
  """Of the true and of the predicted object."""
  record = detections(20)[0]
  item = location.Object((5, 10, 30, 40), "a cat", range(16))
  text = location.encode([item], SIZE)
  record |= {"suffix": text, "prediction": text}
  folder = make_run("cats", records=lambda step: [record])
  plain = run_files.read(folder).evaluations["val"]
  path = folder / "config.json"
  config = json.loads(path.read_text())
  codec = "paligemma/assets/tiny_mask_codec.npz"
  config["evals"]["val"]["mask_codec"] = codec
  path.write_text(json.dumps(config))
  masked = run_files.read(folder).evaluations["val"]
  drawn = [run_answers.draw(x, {"a": record}) for x in (plain, masked)]
  assert drawn[0][0] != drawn[1][0]
  assert drawn[0][1]["a"] != drawn[1][1]["a"]
  assert len(objects.parse(text, SIZE, decode=masked.decode)) == 1
