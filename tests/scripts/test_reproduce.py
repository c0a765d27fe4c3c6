"""From a publisher's files to a line of the table, and what is not done twice.

On TextVQA: with answers that are public, and some that are not.
"""

import json
import pathlib
import shutil
import sys

import pytest

import paligemma
from scripts import evaluate, reproduce
from scripts.datasets import folder
from tests.scripts.datasets import publishers
from trainers import train

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = {
  "ckpt": "",
  "tokenizer": "paligemma/assets/tiny_tokenizer.model",
  "variant": "paligemma_tiny",
  "res": 28,
}
RUN = "runs/textvqa_paligemma_tiny_28_steps2"


def small(name, given, load=reproduce._load):
  """A config whose model has little to compile."""
  config = load(name, given)
  tower = dict(width=16, depth=1, mlp_dim=22, num_heads=2, remat_policy="none")
  config.model.img.update(**tower)
  config.model.llm.update(**tower, head_dim=10)
  config.update(batch_size=8, text_len=16)
  config.train.text_buckets = False
  return config


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  """The folder of a run that came to its end."""
  folder = tmp_path_factory.mktemp("done")
  publishers.write_all(folder / "raw/textvqa", publishers.textvqa().files)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(reproduce, "_load", small)
    again(raw="raw")
  return folder


@pytest.fixture
def here(done, tmp_path, monkeypatch):
  """The same in a copy of its own."""
  shutil.copytree(done, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(reproduce, "_load", small)
  return tmp_path


def again(*names, **options):
  return reproduce.reproduce(
    names or ["textvqa"],
    "runs",
    **{**OPTIONS, "budget": "steps=2", "batch_size": 8} | options,
  )


def test_a_line_for_each_evaluation(here):
  run = here / RUN
  asked = json.loads((run / "submissions/test.json").read_text())
  assert [x["question_id"] for x in asked] == list(range(24))
  assert {tuple(x) for x in asked} == {("question_id", "answer")}
  found = json.loads((run / "evaluations/val.json").read_text())
  settings = json.loads((run / "predictions/val.jsonl.settings").read_text())
  assert found["bundle"] in settings["bundles"]
  assert not found["trained_on"]
  config = json.loads((run / "config.json").read_text())
  assert (config["total_steps"], config["total_epochs"]) == (2, None)
  assert list(config["evals"]) == ["pplx"]
  page = (here / "runs/README.md").read_text().splitlines()
  note = "trial: steps=2; data: 3 differences"
  assert page[-2:] == [
    "| textvqa | paligemma_tiny, 28 | test, server | acc |  |  |  |  |  | "
    f"{note}; submit submissions/test.json |",
    "| textvqa | paligemma_tiny, 28 | val | acc |  | 0.00 | [0.00, 0.00] |  | "
    f"{found['bundle']} | {note} |",
  ]
  assert json.loads((here / "runs/reached.json").read_text()) == []


def test_what_is_done_is_not_done_again(here, monkeypatch):
  def fail(*_, **__):
    raise AssertionError("is done already")

  before = (here / RUN / "evaluations/val.json").read_text()
  monkeypatch.setattr(train, "train", fail)
  monkeypatch.setattr(folder, "prepare", fail)
  with monkeypatch.context() as patch:
    patch.setattr(evaluate, "evaluate", fail)
    rows, failed = again(raw="raw")
  assert not failed
  assert [row.split for row in rows] == ["test, server", "val"]
  # One evaluation is missing: the predictions are there, all but a line.
  (here / RUN / "evaluations/val.json").unlink()
  lines = here / RUN / "predictions/val.jsonl"
  text = lines.read_text()
  lines.write_text(text[:-9])
  asked = []
  run = evaluate.evaluate

  def evaluated(config, *arguments, **options):
    asked.extend(config.evals)
    return run(config, *arguments, **options)

  monkeypatch.setattr(evaluate, "evaluate", evaluated)
  assert not again()[1]
  assert asked == ["val"]
  assert lines.read_text() == text
  now = json.loads((here / RUN / "evaluations/val.json").read_text())
  assert now["scores"] == json.loads(before)["scores"]


def test_a_hugging_face_folder_is_evaluated_like_the_run(here):
  """As the checkpoints are that others have tuned and published."""
  paligemma.save("hf", *paligemma.load(RUN), format="huggingface")
  config = reproduce.config_of("textvqa", **OPTIONS)
  found = {}
  for ckpt in (RUN, "hf"):
    (row,) = evaluate.evaluate(config, ckpt, split="val", out=f"{ckpt}.jsonl")
    lines = publishers.read_lines(pathlib.Path(f"{ckpt}.jsonl"))
    found[ckpt] = (
      row,
      [(x["prediction"], round(x["score"], 4)) for x in lines],
    )
  assert found["hf"] == found[RUN]
  assert found["hf"][0][:2] == ("val", 24)


def test_another_config_is_refused(here):
  _, failed = again(tokenizer=str(ROOT / "README.md"))
  assert (
    "textvqa_paligemma_tiny_28_steps2: belongs to another config (tok"
    in (failed["textvqa"])
  )


def test_one_that_fails_does_not_stop_the_others(here):
  rows, failed = again("okvqa", "pope", "textvqa")
  assert failed == {
    "okvqa": "data/okvqa/train.jsonl: missing; python -m scripts.prepare okvqa "
    "--list says what to download, and --raw names its folder here",
    "pope": "data/pope/adversarial.jsonl: missing; python -m scripts.prepare "
    "pope --list says what to download, and --raw names its folder here",
  }
  assert {row.task for row in rows} == {"textvqa"}
  publishers.write_all(here / "raw/pope", publishers.pope().files)
  _, failed = again("pope", raw="raw")
  assert failed == {
    "pope": "runs/vqav2_paligemma_tiny_28_steps2: missing, pope evaluates what "
    "vqav2 has trained; name vqav2 before it"
  }


def test_as_published(monkeypatch):
  monkeypatch.chdir(ROOT)
  config = reproduce.config_of("okvqa")
  assert config.init == "paligemma_3b_pt_224"
  assert config.train.sources.train.slice is None  # with what was held out
  assert (config.total_epochs, config.evals.val.batch_size) == (10.0, 1024)
  config = reproduce.config_of("okvqa", variant="paligemma2_3b", res=448)
  assert config.init == "paligemma2_3b_pt_448"
  assert config.train.sources.train.slice == "[:-10%]"
  assert reproduce._trains_on(reproduce.config_of("okvqa"), "minival")
  assert not reproduce._trains_on(config, "minival")
  config = reproduce.config_of("msvd_qa", budget="epochs=0.5,limit=7")
  assert config.evals.test.source.path == "data/msvd_qa/test.jsonl"
  assert (config.total_epochs, config.evals.test.limit) == (0.5, 7)
  assert reproduce.config_of("pope", budget="steps=2").total_steps == 0
  assert reproduce._files(reproduce.config_of("detection")) == []


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["okvq"], 'unknown transfer "okvq".*Did you mean "okvqa"'),
    (["okvqa", "--budget", "step=2"], 'unit of --budget "step".*mean "steps"'),
    (["okvqa", "--budget", "steps=2a"], "steps=2a: expected numbers, such as"),
    (["okvqa", "--variant", "paligemma_3"], '"paligemma_3".*"paligemma_3b"'),
  ],
)
def test_what_is_wrong_is_one_line(arguments, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["reproduce", *arguments])
  monkeypatch.setattr("trainers.gpu_memory.configure", lambda: None)
  monkeypatch.setattr("trainers.compilation_cache.configure", lambda _: None)
  with pytest.raises(ValueError, match=message) as caught:
    reproduce.main()
  assert "\n" not in str(caught.value)
