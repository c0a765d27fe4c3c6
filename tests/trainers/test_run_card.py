"""A model card of weights of a run says what the run's files say."""

import json

import numpy as np
import pytest

from tests.trainers.conftest import write_jsonl
from trainers import bundle, run_card, workdir


@pytest.fixture
def run(tiny, tmp_path):
  """A run of 12 steps as its files tell it, whose weights are not there."""
  folder = tmp_path / "runs" / "mine"
  (folder / "val").mkdir(parents=True)
  config = tiny.config()
  write(folder / "config.json", workdir.as_json(config))
  made = bundle.describe(
    {"init": "sha256:0123456789abcdef"}, 0, examples={"train.main": 13}
  )
  write(folder / "bundle.json", {"starts": [{"step": 0, **made}]})
  write(folder / "best.json", {"score": "val/x", "value": 1.0, "step": 6})
  lines = [
    {"step": step, "val/exact_match": value, "val/num_examples": 4}
    for step, value in {0: 0.0, 6: 0.75, 12: 0.5}.items()
  ]
  write_jsonl(folder / "metrics.jsonl", lines)
  for step in (6, 12):
    records = [
      {"index": i, "prefix": "", "suffix": "a", "prediction": "ab"[i == 0]}
      for i in range(4)
    ]
    write_jsonl(folder / f"val/predictions-{step}.jsonl", records)
  write(
    folder / "status.json",
    {"state": "finished", "step": 12, "total_steps": 12},
  )
  return folder


def write(path, value):
  path.write_text(json.dumps(value))


def facts(about):
  return dict(about.facts)


def test_last_step(run, tiny):
  about = run_card.of(run)
  assert about.bases == (f"{tiny.folder.name}/paligemma_tiny.npz",)
  assert about.datasets == (tiny.folder.name,)
  assert facts(about)["steps"].startswith("12 of ")
  assert "(sha256 0123456789ab…)" in facts(about)["began with"]
  assert ", 13 examples" in facts(about)["data"]
  known = json.loads((run / "bundle.json").read_text())["starts"][0]["id"]
  assert facts(about)["bundle"].startswith(f"`{known}`")
  (score,) = [x for x in about.scores if x[0] == "val/exact_match"]
  assert (score[1], score[3]) == ("0.5", "4")


@pytest.mark.parametrize("name", ["best.npz", "checkpoints/6"])
def test_another_step(run, name):
  about = run_card.of(run / name)
  assert facts(about)["steps"].startswith("6 of ")
  (score,) = [x for x in about.scores if x[0] == "val/exact_match"]
  assert score[1] == "0.75"


def test_intervals_are_of_the_predictions(run):
  (score,) = run_card.of(run).scores
  low, high = map(float, score[2].split(" to "))
  assert 0 <= low < 0.75 < high <= 1
  (run / "val/predictions-12.jsonl").unlink()
  (score,) = run_card.of(run).scores
  assert score[1:3] == ("0.5", "")


def test_a_run_that_began_with_a_run(run, tmp_path):
  second = tmp_path / "runs" / "second"
  second.mkdir()
  config = json.loads((run / "config.json").read_text())
  write(second / "config.json", config | {"init": str(run / "final.npz")})
  write(second / "bundle.json", {"starts": []})
  write(run / "config.json", config | {"init": "paligemma2_3b_pt_224"})
  about = run_card.of(second)
  assert about.bases == ("paligemma2_3b_pt_224",)
  assert "mine/final.npz" in facts(about)["began with"]


def test_the_config_tells_no_folder_of_the_machine(run, tiny):
  text = json.dumps(run_card.of(run).config)
  assert str(tiny.folder.parent) not in text
  assert f"{tiny.folder.name}/train.jsonl" in text


def test_an_adapter_of_the_run_and_another(run, tmp_path):
  assert run_card.of("tiny.npz", run / "adapter.safetensors") == run_card.of(
    run
  )
  other = tmp_path / "other.safetensors"
  np.save(other, np.zeros(3))
  about = run_card.of("gemma_2b_en", other)
  assert about.bases == ("gemma_2b_en",)
  assert "other.safetensors" in facts(about)["adapter, merged"]


def test_what_is_of_no_run(tmp_path):
  assert run_card.of("siglip_b16_224").bases == ("siglip_b16_224",)
  both = run_card.of({"img": "a.npz", "llm": "b.npz"})
  assert both.bases == ("a.npz", "b.npz")
  assert not run_card.of(tmp_path / "a.npz").facts


def test_tuned_for_chat(run, tiny, tmp_path):
  assert run_card.is_chat("gemma2_instruct_2b_en")
  assert not run_card.is_chat("gemma2_2b_en")
  assert not run_card.is_chat(run)
  config = json.loads((run / "config.json").read_text())
  data = tmp_path / "chat.jsonl"
  write_jsonl(data, [{"messages": []}])
  config["train"]["sources"]["main"]["path"] = str(data)
  write(run / "config.json", config)
  assert run_card.is_chat(run)
