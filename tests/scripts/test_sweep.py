"""Sweeps: combinations, runs that fail and stop, tables, search, SLURM."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from paligemma import disk
from scripts import sweep
from scripts.sweeps import combinations, devices, results, runner

METRIC = "val/exact_match"


class Run:
  """A training that takes two looks, and does what its learning rate says.

  Above 1 it fails, above 10 something kills it; at 0.5 it is stopped halfway
  when it is first started. Its score is the learning rate, less with lora.
  """

  started, now, most, environments = [], 0, 0, []

  def __init__(self, command, log, environment):
    path = command[command.index("--config") + 1]
    pairs = [x.removeprefix("--config.") for x in command if "config." in x]
    values = dict(x.split("=", 1) for x in path.split(",") + pairs)
    self.folder = log.parent
    self.rate = float(values.get("learning_rate", 0.3))
    self.score = self.rate / (2 if values.get("tune") == "lora" else 1)
    self.looks, self.returncode = 0, None
    Run.started.append(self.folder.name)
    Run.environments.append(environment)
    Run.now += 1
    Run.most = max(Run.most, Run.now)
    log.write_text(f"{' '.join(command)}\n")

  def poll(self):
    self.looks += 1
    if self.looks == 2 and self.returncode is None:
      self.end()
    return self.returncode

  def end(self, code=None):
    Run.now -= 1
    again = (self.folder / "metrics.jsonl").exists()
    scores = [0.0, self.score, self.score / 2]
    lines = [{"step": i, METRIC: score} for i, score in enumerate(scores)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    self.returncode = code or 0
    if code is None and self.rate > 1:
      self.returncode = 1 if self.rate < 10 else -9
      with (self.folder / runner.LOG).open("a") as file:
        file.write("error: step 2: loss is nan\n\n")
      return
    (self.folder / "metrics.jsonl").write_text(text)
    if code is None and (self.rate != 0.5 or again):
      (self.folder / "final.npz").write_text("")

  def terminate(self):
    if self.returncode is None:
      self.end(0)

  def wait(self):
    return self.returncode


@pytest.fixture(autouse=True)
def fake(monkeypatch):
  Run.started, Run.now, Run.most, Run.environments = [], 0, 0, []
  monkeypatch.setattr(runner, "start", Run)
  monkeypatch.setattr(runner, "_POLL", 0)
  return Run


@pytest.fixture
def main(tiny, tmp_path, monkeypatch, capsys):
  """Runs the command; returns what it prints, and how it exits."""

  def run(*arguments, workdir=tmp_path / "sweep"):
    argv = ["sweep", f"--workdir={workdir}", f"--config={tiny.arguments}"]
    monkeypatch.setattr(sys, "argv", [*argv, *arguments])
    try:
      with sweep.command_line.mistakes_in_one_line():
        sweep.main()
      end = 0
    except SystemExit as error:
      end = error.code
    return capsys.readouterr(), end

  return run


def names(*rates, **others):
  more = "".join(f",{name}={value}" for name, value in others.items())
  return [f"learning_rate={rate}{more}" for rate in rates]


def test_every_combination_is_trained_and_the_best_is_first(
  main, fake, tmp_path
):
  grid = "--grid", "tune=attention,lora", "learning_rate=0.1,0.3"
  (out, err), end = main(*grid, "--config.seed=7")
  assert end == 0
  wanted = names(0.1, 0.3, tune="attention") + names(0.1, 0.3, tune="lora")
  assert fake.started == wanted
  assert "4 runs, compared by the best val/exact_match, the higher the" in err
  rows = [line.split() for line in out.splitlines()]
  assert " ".join(rows[0]) == (
    "learning_rate tune best val/exact_match at step last minutes status"
  )
  assert [row[:5] for row in rows[1:]] == [
    ["0.3", "attention", "0.3", "1", "0.15"],
    ["0.3", "lora", "0.15", "1", "0.075"],
    ["0.1", "attention", "0.1", "1", "0.05"],
    ["0.1", "lora", "0.05", "1", "0.025"],
  ]
  folder = tmp_path / "sweep"
  assert (folder / "table.txt").read_text() == out
  written = json.loads((folder / "sweep.json").read_text())
  assert (written["metric"], written["higher_is_better"]) == (METRIC, True)
  assert written["runs"][0] == {
    "name": "learning_rate=0.3,tune=attention",
    "values": {"tune": "attention", "learning_rate": "0.3"},
    "status": "finished",
    "seconds": pytest.approx(0, abs=60),
    "error": "",
    "best": 0.3,
    "best_step": 1,
    "last": 0.15,
  }
  log = (folder / "learning_rate=0.1,tune=lora" / runner.LOG).read_text()
  command = log.split()
  assert command[1:4] == ["-m", "paligemma", "train"]
  assert command[5].endswith(",tune=lora")
  assert command[-2:] == ["--config.seed=7", "--config.learning_rate=0.1"]


def test_failed_runs_stop_no_others_and_are_tried_again(main, fake, tmp_path):
  (out, _), end = main("--grid", "learning_rate=3,0.5,30,0.2")
  assert fake.started == names(3, 0.5, 30, 0.2)
  assert end.splitlines() == [
    "failed: learning_rate=3: error: step 2: loss is nan",
    "failed: learning_rate=30: ended by signal 9, after: error: step 2: loss "
    "is nan",
  ]
  states = {row.split()[0]: row.split()[-1] for row in out.splitlines()[1:]}
  assert list(states) == ["0.5", "0.2", "3", "30"]
  assert states == {
    "0.5": "stopped",
    "0.2": "finished",
    "3": "failed",
    "30": "failed",
  }
  fake.started.clear()
  (out, err), end = main("--grid", "learning_rate=0.1,0.2,0.5,3")
  assert fake.started == names(0.1, 0.5, 3)
  assert "learning_rate=0.2: already finished" in err
  assert end == "failed: learning_rate=3: error: step 2: loss is nan"
  found = [row.split()[0] for row in out.splitlines()[1:]]
  assert found == ["0.5", "0.2", "0.1", "3", "30"]


def test_a_folder_belongs_to_one_config(main, fake, tmp_path):
  folder = tmp_path / "sweep"
  main("--grid", "learning_rate=0.1")
  written = json.loads((folder / "config.json").read_text())
  run = folder / "learning_rate=0.1"
  for path, values in ((folder, {}), (run, {"learning_rate": 0.1})):
    file = path / "config.json"
    file.write_text(json.dumps({**written, **values, "seed": 3}))
    _, end = main("--grid", "learning_rate=0.1,0.2")
    assert end == (
      f"error: {path}: belongs to another config (seed: found 3, given 0); "
      "use another --workdir, or restore the values"
    )
    file.write_text(json.dumps({**written, **values}))
  assert fake.started == names(0.1)
  # What changes no training may be another.
  _, end = main("--grid", "learning_rate=0.2", "--config.log_steps=7")
  assert end == 0


@pytest.mark.parametrize("arguments", [("--metric", "pplx/perplexity"), ()])
def test_the_direction_is_that_of_the_metric(main, tmp_path, arguments):
  more = () if arguments else ("--config.keep_best=pplx/perplexity",)
  (_, err), _ = main("--grid", "learning_rate=0.1", *arguments, *more)
  assert "compared by the best pplx/perplexity, the lower the better" in err
  folder = tmp_path / "sweep"
  for name, found in (("b", [3.0, 1.5]), ("c", [4.0, float("nan")])):
    (folder / name).mkdir()
    results.write(folder / name, {"x": name}, "stopped")
    lines = [{"step": i, "loss": x} for i, x in enumerate(found)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / name / "metrics.jsonl").write_text(text)
  for higher, order in ((False, "bc"), (True, "cb")):
    runs = results.collect(folder, "loss", higher)
    assert [run["name"] for run in runs][:2] == list(order)
  first, second, third = results.collect(folder, "loss", False)
  assert (first["best"], first["best_step"], first["last"]) == (1.5, 1, 1.5)
  assert (second["best"], second["best_step"]) == (4.0, 0)
  assert third["best"] is None


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--grid", "learning_rat=1", "tun=lora", "optimizer_arg.momentum=1"],
      'error: "learning_rat" is neither an argument nor a value of {config}. '
      'Did you mean "learning_rate"?; "tun" is neither an argument nor a value '
      'of {config}. Did you mean "tune"?; "optimizer_arg.momentum" is neither '
      'an argument nor a value of {config}. Did you mean "optimizer_args"?',
    ),
    (["--grid", "tune"], 'error: "tune": expected a name with values, such as'),
    (["--grid", "tune="], 'error: "tune=": expected a name with values, such'),
    (["--grid", "a=1", "a=2"], "error: a is given twice; list all its values"),
    (["--grid", "tune=lor"], 'error: unknown tune "lor", expected one of: '),
    (["--grid", "learning_rate=x"], "error: flag --config.learning_rate=x: "),
    (
      ["--grid", "tune=lora", "--verbos"],
      'error: unknown argument "--verbos", expected those of --help, and '
      "--config.name=value",
    ),
    (
      ["--grid", "tune=lora", "--metric=val/exact"],
      'error: unknown --metric "val/exact", expected one of: pplx/nll_per_exam',
    ),
    (
      ["--grid", "tune=lora", "--only=1"],
      "error: --only 1: expected 0 to 0, as there are 1 combinations",
    ),
    (
      ["--grid", "tune=lora", "--parallel=0"],
      "error: --parallel 0: expected at least 1",
    ),
    (
      ["--search", "tune=lora", "--slurm"],
      "error: --slurm and --only take a --grid, not a --search",
    ),
    (
      ["--search", "learning_rate=0:1:log"],
      'error: "learning_rate=0:1:log": expected LOW:HIGH or LOW:HIGH:log, such',
    ),
    (
      ["--search", "learning_rate=a:b"],
      'error: "learning_rate=a:b": expected LOW:HIGH or LOW:HIGH:log, such as',
    ),
  ],
)
def test_mistakes_are_one_line_and_begin_nothing(
  main, tiny, tmp_path, arguments, message
):
  _, end = main(*arguments)
  assert "\n" not in end
  config = tiny.arguments.partition(":")[0]
  assert end.startswith(message.format(config=config)), end
  assert not any((tmp_path / "sweep").glob("*/*"))


def test_a_folder_of_another_file_system(main):
  _, end = main("--grid", "tune=lora", workdir="gs://mine/sweep")
  assert end == "error: --workdir gs://mine/sweep: expected a local folder"


def test_without_optuna(main, monkeypatch):
  monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda _: None)
  _, end = main("--search", "tune=lora,head")
  assert end == 'error: --search needs optuna: pip install ".[sweep]"'


def test_combinations_have_stable_names():
  made = combinations.grid(["b=1,2", "a=(('x', (1, 2)),),()", "c=d/e.npz"])
  assert len(made) == 4
  assert made[0] == {"b": "1", "a": "(('x', (1, 2)),)", "c": "d/e.npz"}
  assert len(combinations.grid(["a=1,1,2"])) == 2
  name = combinations.folder_name({"b": "1", "a": "d/e.npz"})
  assert name == "a=d%2Fe.npz,b=1"
  assert name == combinations.folder_name({"a": "d/e.npz", "b": "1"})
  long = {combinations.folder_name({"a": "x" * 300 + end}) for end in "yz"}
  assert len(long) == 2
  assert {len(name) for name in long} == {200}


def test_values_of_any_name(tiny):
  base = combinations.Base(tiny.arguments, ["--config.seed=3"])
  base.check_names(["optimizer_args.momentum", "evals.val.limit", "res"])
  values = {"optimizer_args.momentum": "0.9", "res": "56"}
  config = base.make(values)
  assert config.optimizer_args.to_dict() == {"momentum": 0.9}
  assert (config.res, config.seed) == (56, 3)
  assert base.config.optimizer_args.to_dict() == {"momentum": None}


@pytest.mark.parametrize(
  "text",
  [
    "def get_config(): return forkme.get_config()",
    "def get_config(arg=7): return forkme.get_config(f'res={int(arg)}')",
  ],
)
def test_configs_without_named_arguments(tmp_path, text):
  path = tmp_path / "config.py"
  path.write_text(f"from configs.transfers import forkme\n{text}\n")
  base = combinations.Base(str(path), [])
  base.check_names(["res"])
  assert base.make({"res": "14"}).res == 14
  with pytest.raises(ValueError, match='"tune" is neither'):
    base.check_names(["tune"])


def test_each_run_has_a_device(main, fake, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "")
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
  _, end = main("--grid", "learning_rate=0.1,0.2,0.3,0.4", "--parallel")
  assert end == 0
  assert fake.most == 3
  given = [env["CUDA_VISIBLE_DEVICES"] for env in fake.environments]
  assert sorted(given[:3]) == ["2", "5", "GPU-7"]
  assert given[3] in given[:3]
  assert devices.environments(2) == [
    {"CUDA_VISIBLE_DEVICES": "2"},
    {"CUDA_VISIBLE_DEVICES": "5"},
  ]
  with pytest.raises(ValueError, match=r"^--parallel 4: found 3 devices, one"):
    devices.environments(4)


def test_devices_are_counted(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "")
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  monkeypatch.setenv("PATH", str(tmp_path))
  monkeypatch.setattr(devices, "_count_tpu_chips", lambda: 2)
  assert devices.environments(None) == [
    {
      "TPU_VISIBLE_CHIPS": chip,
      "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
      "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    for chip in "01"
  ]
  program = tmp_path / "nvidia-smi"
  lines = "GPU 0: H200 (UUID: GPU-a)\n  MIG 1g.18gb\nGPU 1: H200 (UUID: GPU-b)"
  program.write_text(f"#!{sys.executable}\nprint('''{lines}''')\n")
  program.chmod(0o755)
  found = [x["CUDA_VISIBLE_DEVICES"] for x in devices.environments(None)]
  assert found == ["0", "1"]


def test_runs_on_cpus_share_them(main, fake, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  main("--grid", "learning_rate=0.1,0.2,0.3", "--parallel=2")
  assert fake.most == 2
  assert fake.environments == [{}, {}, {}]
  _, end = main("--grid", "learning_rate=0.1", "--parallel")
  assert end == (
    "error: --parallel: found neither GPUs nor TPUs; on CPUs, give the number "
    "of runs at a time, such as --parallel 2"
  )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_runs(main, fake, monkeypatch, number):
  poll = fake.poll

  def signalled(run):
    if run.looks == 0:
      os.kill(os.getpid(), number)
    return poll(run)

  monkeypatch.setattr(fake, "poll", signalled)
  handler = signal.getsignal(number)
  grid = "--grid", "learning_rate=0.1,0.2,0.3"
  (out, err), end = main(*grid, "--parallel=2")
  assert end == 128 + number
  assert fake.started == names(0.1, 0.2)
  states = [row.split()[-1] for row in out.splitlines()[1:]]
  assert states == ["stopped", "stopped"]
  assert err.endswith("stopped: the same command goes on with the rest\n")
  assert signal.getsignal(number) == handler
  monkeypatch.setattr(fake, "poll", poll)
  _, end = main(*grid)
  assert end == 0
  assert fake.started[2:] == names(0.1, 0.2, 0.3)


def test_a_mistake_of_the_sweep_leaves_no_run_behind(
  main, fake, monkeypatch, tmp_path
):
  def full(*_, **__):
    raise OSError(28, "No space left on device", "table.txt")

  monkeypatch.setattr(results, "write", full)
  with monkeypatch.context() as patch:
    patch.setattr(fake, "poll", full)
    patch.setattr(results, "write", lambda *_, **__: None)
    _, end = main("--grid", "learning_rate=0.1,0.2", "--parallel=2")
  assert end == "error: table.txt: No space left on device"
  assert fake.now == 0
  assert len(fake.started) == 2


def test_an_array_of_slurm(main, fake, tmp_path):
  grid = "--grid", "learning_rate=0.1,0.2", "tune=attention,lora"
  (out, _), end = main("--slurm", *grid)
  path = tmp_path / "sweep/sweep.sbatch"
  assert (out, end) == (f"sbatch {path}\n", 0)
  assert fake.started == []
  text = path.read_text()
  assert "#SBATCH --array=0-3\n" in text
  assert f"#SBATCH --output={tmp_path}/sweep/%x-%A_%a.log\n" in text
  subprocess.run(["shellcheck", path], check=True)
  command = shlex.split(text.partition("exec ")[2].replace("\\\n", ""))
  assert command[:5] == ["srun", "python", "-m", "paligemma", "sweep"]
  assert command[5:7] == ["--only", "$SLURM_ARRAY_TASK_ID"]
  assert "--slurm" not in command
  assert tuple(command[-3:]) == grid
  for i in (2, 0):
    _, end = main(*command[9:], f"--only={i}")
    assert end == 0
  made = [{"learning_rate": "0.2", "tune": "attention"}]
  made += [{"learning_rate": "0.1", "tune": "attention"}]
  assert fake.started == [combinations.folder_name(x) for x in made]
  table = (tmp_path / "sweep/table.txt").read_text().splitlines()
  assert len(table) == 3


def test_a_search_goes_on_where_it_stopped(main, fake, tmp_path):
  space = "--search", "learning_rate=0.01:0.4:log", "text_len=19:23"
  (_, err), end = main(*space, "--trials=3")
  assert end == 0
  assert "3 trials, compared by the best val/exact_match" in err
  assert (tmp_path / "sweep/sweep.db").exists()
  assert len(set(fake.started)) == 3
  main(*space, "--trials=7")
  assert len(fake.started) == len(set(fake.started)) == 7
  for name in fake.started:
    rate, length = (x.partition("=")[2] for x in name.split(","))
    assert 0.01 <= float(rate) <= 0.4
    assert len(rate.lstrip("0.")) <= 4
    assert 19 <= int(length) <= 23
  (out, _), _ = main(*space, "--trials=7")
  assert len(fake.started) == 7
  assert len(out.splitlines()) == 8


def test_a_search_tries_again_what_failed(main, fake, monkeypatch):
  space = "--search", "learning_rate=0.1,3"
  _, end = main(*space, "--trials=9")
  assert end == "failed: learning_rate=3: error: step 2: loss is nan"
  assert sorted(fake.started) == names(0.1, 3)
  fake.started.clear()
  monkeypatch.setattr(fake, "end", lambda run: run.terminate())
  monkeypatch.setattr(fake, "terminate", finish)
  _, end = main(*space, "--trials=9")
  assert (fake.started, end) == (names(3), 0)


def finish(run):
  run.returncode = 0
  (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, METRIC: 1}))
  (run.folder / "final.npz").write_text("")


CONFIG = """
from tests.trainers import tiny_config

def get_config(argument=None):
  config = tiny_config.get_config(argument)
  del config.evals["val"]  # no decoding to compile
  return config
"""


def test_trainings(tiny, tmp_path):
  """Stopped, resumed, and one that fails, for real."""
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  argument = f"train={tiny.data},val={tiny.data},init={tiny.weights}"
  argument += f",tokenizer={tiny.tokenizer},epochs=20"
  folder = tmp_path / "sweep"
  command = [sys.executable, "-m", "paligemma", "sweep", "--workdir", folder]
  command += ["--config", f"{path}:{argument}", "--grid", "optimizer=sgd,sgdd"]

  def start():
    return subprocess.Popen(
      command,
      env=tiny.environment(),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  run = folder / "optimizer=sgd"
  with start() as process:
    end = time.monotonic() + 600
    log = run / "metrics.jsonl"
    while not (log.exists() and '"step": 3' in log.read_text()):
      assert process.poll() is None and time.monotonic() < end
      time.sleep(0.01)
    process.terminate()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, err
  assert out.splitlines()[-1].endswith("stopped")
  assert not (run / "final.npz").exists()
  assert "saved, start again to resume" in (run / runner.LOG).read_text()
  with start() as process:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
  last = err.splitlines()[-1]
  assert last.startswith('failed: optimizer=sgdd: error: unknown optimizer "sg')
  assert (run / "final.npz").exists()
  rows = [row.split() for row in out.splitlines()]
  assert " ".join(rows[0]).startswith("optimizer best pplx/perplexity at step")
  assert [(row[0], row[-1]) for row in rows[1:]] == [
    ("sgd", "finished"),
    ("sgdd", "failed"),
  ]
  assert "optimizer=sgd" in (folder / "report.html").read_text()
  steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
  assert steps == sorted(steps)
  assert disk.read_json(run / results.FILE)["seconds"] > 0
