"""Fine-tunes PaliGemma.

    python -m trainers.train --config configs/transfers/forkme.py:res=224 \
      --workdir runs/mine

Started again on the same workdir, it resumes where the last checkpoint ended,
bit for bit; with other values of the config that change the training only by
--override_config. --dry_run prints the tables of parameters, memory, steps and
data, and allocates nothing.
"""

import contextlib

from absl import app, flags, logging

from paligemma.checkpoints.lora import adapters
from paligemma.checkpoints.training import steps
from paligemma.lora import apply as lora
from trainers import (
  checks,
  command_line,
  gpu_memory,
  inputs,
  lock,
  preemption,
  processes,
  start,
  workdir,
)
from trainers.command_line import parse_flags
from trainers.loop import Loop
from trainers.plan import Plan

_CONFIG = command_line.CONFIG
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
_OVERRIDE = flags.DEFINE_bool(
  "override_config",
  False,
  "Resume a run though values of its config that change the training are "
  "others, and write them into its history.jsonl.",
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  processes.expected(),
  "Several processes: those that JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
  "and JAX_PROCESS_ID name, or what the cluster (TPU pod, SLURM) says.",
)


def train(config, folder, *, override=False):
  """Runs or resumes the training that a config describes, to its end.

  Args:
    config: ml_collections.ConfigDict, as configs/transfers/forkme.py makes it.
    folder: path of the folder of the run.
    override: bool, whether a run of another config is resumed with this one.
  """
  with contextlib.ExitStack() as stack:
    notice = stack.enter_context(contextlib.closing(preemption.Preemption()))
    plan = Plan(config)
    tok = inputs.make_tokenizer(config, plan.model)
    evaluators = inputs.make_evaluators(config, tok, **plan.sizes)
    batches = inputs.train_batches(config, plan.sources, tok)
    folder = workdir.check(folder, config, override=override)
    data = checks.check(plan, tok, evaluators)
    held = stack.enter_context(lock.held(folder))
    compiled = plan.compile_step()
    checkpoints = stack.enter_context(
      steps.StepCheckpoints(
        folder / "checkpoints", max_to_keep=config.keep_checkpoints
      )
    )
    state, frozen = start.start_or_resume(plan, checkpoints, batches)
    if lora.lora_of(plan.model) is not None:
      plan.model = adapters.knowing_base(plan.model, frozen)
    changes = workdir.claim(folder, config, step=int(state.step))
    loop = Loop(
      plan, folder, checkpoints, batches, evaluators, notice=notice, lock=held
    )
    stack.callback(loop.close)
    loop.report.say(plan.describe(compiled))
    loop.report.say(start.describe_source(config, plan.model))
    loop.report.say(data)
    if changes:
      loop.report.say(workdir.describe(changes))
    loop.run(compiled, state, frozen)


def dry_run(config):
  """Prints what stands at the start of a training, and stops before it."""
  plan = Plan(config)
  print(plan.describe(plan.compile_step()))
  tok = inputs.make_tokenizer(config, plan.model)
  evaluators = inputs.make_evaluators(config, tok, **plan.sizes)
  print(checks.check(plan, tok, evaluators))


def main(argv):
  """Runs what the command line says; a user's mistake ends in one line."""
  del argv
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file at INFO
  gpu_memory.configure()
  processes.start(_DISTRIBUTED.value)
  with (
    command_line.mistakes_in_one_line(),
    processes.lost_process_in_one_line(),
  ):
    if _DRY_RUN.value:
      dry_run(_CONFIG.value)
    elif not _WORKDIR.value:
      raise ValueError("no --workdir given, expected the folder of the run")
    else:
      train(_CONFIG.value, _WORKDIR.value, override=_OVERRIDE.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config"])
  app.run(main, flags_parser=parse_flags)
