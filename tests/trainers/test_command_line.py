"""A command line with a config: values on top of it, and mistakes in it."""

import argparse
import re
import subprocess
import sys

import cloudpickle
import pytest

from trainers import command_line

FORKME = "configs/transfers/forkme.py"


def parse(*arguments):
  parser = argparse.ArgumentParser(prog="train", allow_abbrev=False)
  parser.add_argument("--workdir")
  command_line.add_switch(parser, "dry_run", "")
  return command_line.parse(parser, arguments)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      [f"--config={FORKME}:varant=paligemma_3b"],
      'unknown config argument "varant", expected .*Did you mean "variant"',
    ),
    (
      [f"--config={FORKME}:tune=atention"],
      'unknown tune "atention".*Did you mean "attention"',
    ),
    (
      [
        f"--config={FORKME}",
        "--config.lerning_rate=1",
        "--config.evals.val.limt",
        "3",
      ],
      'no such value in the config: lerning_rate. Did you mean "learning_rate"'
      '.; no such value in the config: evals.val.limt. .* "evals.val.limit"',
    ),
    (
      [f"--config={FORKME}", "--config.learning_rate=a"],
      "--config.learning_rate=a: could not convert string to float",
    ),
    (
      [f"--config={FORKME}", "--config.train.on_bad"],
      "--config.train.on_bad",
    ),
    (
      [f"--config={FORKME}", "--workdr=a", "--verbosit=1"],
      'unknown argument "--workdr=a". Did you mean "--workdir".; unknown '
      'argument "--verbosit=1".',
    ),
    (["--config=no/such.py"], "--config no/such.py: no such file"),
    (["--config=README.md"], r"--config README.md: expected a file of Python"),
    (
      ["--config=configs/arguments.py"],
      "--config configs/arguments.py: has no function get_config",
    ),
  ],
)
def test_a_mistake(arguments, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(*arguments)
  assert "\n" not in str(caught.value)


def test_values_that_are_not_set_can_be():
  args, config = parse(
    f"--config={FORKME}:text_len=19",
    "--workdir",
    "runs/a",
    "--config.ema_decay=0.9",
    "--config.clip_norm=1",
    "--config.optimizer_args={'momentum': 0.9}",
    "--config.trainable=('img/.*',)",
    "--config.evals.val.limit",
    "3",
    "--config.evals.val.metric=vqa(lower=True)",
    "--config.train.sources.main.cache",
    "--verbosity=-1",
  )
  assert args.workdir == "runs/a"
  assert (config.ema_decay, config.clip_norm) == (0.9, 1.0)
  assert config.optimizer_args.to_dict() == {"momentum": 0.9}
  assert config.trainable == ("img/.*",)
  assert (config.evals.val.limit, config.text_len) == (3, 19)
  assert config.evals.val.metric == "vqa(lower=True)"
  assert config.train.sources.main.cache is True


def test_a_group_that_takes_any_name():
  _, config = parse(
    f"--config={FORKME}",
    "--config.optimizer_args.momentum=0.9",
    "--config.optimizer_args.momentum_dtype=bfloat16",
  )
  assert config.optimizer_args.to_dict() == {
    "momentum": 0.9,
    "momentum_dtype": "bfloat16",
  }
  with pytest.raises(ValueError, match=r"no such value .*: mesh\.momentum\."):
    parse(f"--config={FORKME}", "--config.mesh.momentum=1")


def test_a_duration_takes_the_place_of_the_one_in_another_unit():
  _, config = parse(
    f"--config={FORKME}",
    "--config.total_steps=7",
    "--config.evals.val.every_steps=3",
  )
  assert (config.total_steps, config.total_epochs) == (7, None)
  assert (config.evals.val.every_steps, config.evals.val.every_percent) == (
    3,
    None,
  )
  assert config.evals.pplx.every_percent == 0.25


def test_a_config_that_sets_little_takes_any_value_on_top(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config():\n  return {'res': 56}\n")
  _, config = parse(f"--config={path}", "--config.mesh.model=2")
  assert (config.res, config.mesh.model, config.mesh.data) == (56, 2, -1)
  path.write_text("def get_config():\n  return 3\n")
  with pytest.raises(ValueError, match="get_config returned 3, expected a Co"):
    parse(f"--config={path}")
  path.write_text("def get_config():\n  return {'rez': 56, 'sed': 1}\n")
  with pytest.raises(
    ValueError, match=r'rez is unknown.*"res".*sed is unknown'
  ):
    parse(f"--config={path}")


def test_a_fault_in_the_code_of_a_config_is_shown_as_one(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config():\n  return nothing\n")
  with pytest.raises(NameError, match="nothing"):
    parse(f"--config={path}")


@pytest.mark.parametrize(
  ("flags", "expected"),
  [
    ([], False),
    (["--dry_run"], True),
    (["--dry_run=true"], True),
    (["--dry_run=false"], False),
    (["--dry_run", "--nodry_run"], False),
  ],
)
def test_switches(flags, expected):
  args, _ = parse(f"--config={FORKME}", *flags)
  assert args.dry_run is expected


def test_the_config_has_to_be_there(capsys):
  with pytest.raises(SystemExit):
    parse("--workdir=a")
  assert re.search("required: --config", capsys.readouterr().err)


def test_data_workers_get_the_ops_that_a_config_defines(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    """from __future__ import annotations
import dataclasses

@dataclasses.dataclass(frozen=True)
class Twice:
  key: str

  def __call__(self, example, rng):
    return {**example, self.key: once(example[self.key]) * 2}

def once(text):
  return text.upper()

def get_config():
  return {"train": {"ops": (Twice("prefix"),)}}
"""
  )
  config = command_line.load_config(str(path))
  sent = tmp_path / "op.pickle"
  sent.write_bytes(cloudpickle.dumps(config.train.ops[0]))
  code = "import pickle, sys; op = pickle.load(open(sys.argv[1], 'rb'))"
  code += "; print(op({'prefix': 'a'}, None))"
  result = subprocess.run(
    [sys.executable, "-c", code, sent],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout == "{'prefix': 'AA'}\n", result.stderr
