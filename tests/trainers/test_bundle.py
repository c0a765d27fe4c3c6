import json
import os
import subprocess

import jax
import pytest

from trainers import bundle, train, workdir


def test_the_id_is_of_all_but_the_time():
  first = bundle.describe({"init": "sha256:1"}, 0, examples={"val": 5})
  second = bundle.describe({"init": "sha256:1"}, 0, examples={"val": 5})
  assert {**first, "started": ""} == {**second, "started": ""}
  assert len(first["id"]) == 12
  others = [
    bundle.describe({"init": "sha256:2"}, 0, examples={"val": 5}),
    bundle.describe({"init": "sha256:1"}, 1, examples={"val": 5}),
    bundle.describe({"init": "sha256:1"}, 0, examples={"val": 6}),
  ]
  assert len({x["id"] for x in (first, *others)}) == 4
  assert first["packages"]["jax"] == jax.__version__
  assert first["hardware"]["devices"] == jax.device_count()
  assert first["hardware"]["cpu"]
  assert "xla_force_host" in first["variables"]["XLA_FLAGS"]


@pytest.mark.parametrize(
  ("given", "shown"),
  [
    (["a b", "--x=1"], "'a b' --x=1"),
    (["--token=abc"], "'--token=***'"),
    (["--hf_token", "abc", "x"], "--hf_token '***' x"),
    (["--wandb-key=abc"], "'--wandb-key=***'"),
    (["--key", "abc"], "--key '***'"),
    (["--password=a, b"], "'--password=***'"),
    (["-H", "Authorization: Bearer abc"], "-H 'Authorization: Bearer ***'"),
    (["WANDB_API_KEY=abc"], "'WANDB_API_KEY=***'"),
    (["c.py:api_key=abc,res=56"], "'c.py:api_key=***,res=56'"),
    (["{'password': 'abc'}"], """'{'"'"'password'"'"': '"'"'***'"'"'}'"""),
    (["http://me:abc@host/x"], "'http://***@host/x'"),
    (["hf_" + "aB3" * 9], "'***'"),
    # What only looks alike.
    (["scripts/token", "abc"], "scripts/token abc"),
    (["tokenizer=a.model"], "tokenizer=a.model"),
    (["--max_tokens=5"], "--max_tokens=5"),
    (["--config.evals.val.answer_key=x"], "--config.evals.val.answer_key=x"),
    (["image_key=image"], "image_key=image"),
    (["--config.keep_best=val/AP"], "--config.keep_best=val/AP"),
  ],
)
def test_secrets_of_a_command_are_not_shown(given, shown):
  assert bundle.command(["python", *given]) == f"python {shown}"


def test_git(tmp_path):
  def git(*arguments):
    subprocess.run(
      ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
      cwd=tmp_path,
      check=True,
      capture_output=True,
    )

  assert bundle.git(tmp_path) is None
  git("init")
  assert bundle.git(tmp_path) is None  # it has no commit
  (tmp_path / "a").write_text("1")
  git("add", "a")
  git("commit", "-m", "one")
  found = bundle.git(tmp_path)
  assert len(found["commit"]) == 40
  assert found["is_clean"]
  (tmp_path / "b").write_text("1")
  assert bundle.git(tmp_path) == found | {"is_clean": False}
  # Installed into a folder of a checkout it is no part of that.
  (tmp_path / "site-packages").mkdir()
  assert bundle.git(tmp_path / "site-packages") is None


def test_without_git(tmp_path, monkeypatch):
  (tmp_path / ".git").mkdir()
  monkeypatch.setenv("PATH", str(tmp_path))
  assert bundle.git(tmp_path) is None


def test_each_start_of_a_run_has_one(
  tiny, tmp_path, reuse_steps, monkeypatch, read_metrics
):
  config = tiny.config({"total_epochs": None, "total_steps": 2})
  train.train(config, tmp_path)
  monkeypatch.setenv("XLA_FLAGS", "--another")
  train.train(config, tmp_path)
  first, second = json.loads((tmp_path / "bundle.json").read_text())["starts"]
  assert (first["step"], second["step"]) == (0, 2)
  assert second["variables"] == {"XLA_FLAGS": "--another"}
  assert first["id"] != second["id"]
  assert first["seed"] == 0
  assert first["examples"] == {
    "train.main": 13,
    "evals.pplx": 5,
    "evals.val": 5,
  }
  assert first["files"] == json.loads(
    (tmp_path / "fingerprints.json").read_text()
  )
  assert first["files"]["init"] == workdir.of_file(config.init)
  assert "evals/val/source/path" in first["files"]
  # Of the last step what was evaluated again is the second's.
  lines = read_metrics(tmp_path)
  assert {x["bundle"] for x in lines if "loss" in x} == {first["id"]}
  by_step = {(x["step"], x["bundle"]) for x in lines if "loss" not in x}
  assert by_step >= {(0, first["id"]), (2, second["id"])}
  assert (2, first["id"]) not in by_step
  text = (tmp_path / "val/predictions.jsonl.settings").read_text()
  assert json.loads(text) == {"step": 2, "bundle": second["id"]}
  for path in (tmp_path, tmp_path / "final.npz", tmp_path / "checkpoints/2"):
    assert bundle.of_run(path) == second["id"]
  assert bundle.of_run(config.init) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"starts": 3}'])
def test_a_damaged_file_is_named(tiny, tmp_path, reuse_steps, main, content):
  path = tmp_path / "bundle.json"
  path.write_text(content)
  config = tiny.config({"total_epochs": None, "total_steps": 2})
  line = main(config, tmp_path)
  assert line.startswith(f"error: {path}:")
  assert "\n" not in line
  assert path.read_text() == content


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  assert bundle.of_start(None, tmp_path, [], 0) is None
  assert os.listdir(tmp_path) == []
