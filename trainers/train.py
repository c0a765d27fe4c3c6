"""Fine-tunes PaliGemma.

    python -m trainers.train --config configs/transfers/forkme.py:res=224 \
      --workdir runs/mine

Started again on the same workdir, it resumes from the last checkpoint, bit for
bit; with other values of the config that change the training only by
--override_config. --dry_run prints the tables of parameters, memory, steps and
data, and allocates nothing. --find_lr tries a hundred learning rates, and
trains nothing.
"""

import contextlib
import functools
import os
import sys

if __name__ == "__main__":  # the imports take seconds on a busy machine
  print("starting: importing JAX", file=sys.stderr, flush=True)

import jax
from ml_collections import ConfigDict

from configs import common
from paligemma.checkpoints.training import steps
from trainers import (
  bundle,
  checks,
  command_line,
  compilation_cache,
  find_lr,
  fitting,
  inputs,
  lock,
  preemption,
  processes,
  profile,
  progress,
  run_page,
  start,
  status,
  text_lengths,
  workdir,
  writers,
)
from trainers.best import Best
from trainers.loop import Loop
from trainers.plan import Plan


def train(
  config: ConfigDict,
  folder: str | os.PathLike,
  *,
  override: bool = False,
  verbose: bool = False,
  profile_steps: tuple[int, int] | None = None,
) -> bool:
  """Runs or resumes the training that a config describes, to its end.

  Args:
    config: keys of configs/common.py; what it lacks is added.
    folder: of the run.
    override: whether a run of another config is resumed with this one.
    verbose: whether every parameter and all that is measured is printed.
    profile_steps: first and last step of a trace, see profile.py; None: none.

  Returns:
    Whether it came to its end; False if it was asked to stop before.
  """
  common.complete(config)
  writers.check(config.writers)
  with contextlib.ExitStack() as stack:
    notice = stack.enter_context(contextlib.closing(preemption.Preemption()))
    plan = Plan(config)
    if profile_steps is not None:
      profile.check(profile_steps, plan.total_steps)
    tok = plan.task.make_tokenizer(config, plan.model)
    evaluators = inputs.make_evaluators(config, tok, **plan.sizes)
    best = Best(config, evaluators)
    batches = inputs.train_batches(config, plan.sources, tok)
    folder = workdir.check(folder, config, override=override)
    with progress.stage("checking the data"):
      table = checks.check(plan, tok, evaluators)
    progress.say([table])
    held = stack.enter_context(lock.held(folder))
    checkpoints = stack.enter_context(
      steps.StepCheckpoints(
        folder / "checkpoints",
        max_to_keep=config.keep_checkpoints,
        keep_period=plan.keep_period,
      )
    )
    if checkpoints.latest_step() is None:
      start.check_weights(plan)
    plan, compiled, step = fit(plan)
    progress.say([plan.describe(compiled, verbose=verbose)])
    state, frozen = start.start_or_resume(plan, checkpoints, batches)
    changes = workdir.claim(folder, config, step=int(state.step))
    ran_with = bundle.of_start(plan, folder, evaluators, int(state.step))
    loop = Loop(
      plan,
      folder,
      checkpoints,
      batches,
      evaluators,
      best=best,
      notice=notice,
      lock=held,
      bundle=ran_with,
      verbose=verbose,
    )
    stack.callback(loop.close)
    loop.report.say(start.describe_source(config, plan.model))
    if best.name is not None:
      loop.report.say(best.describe_rule())
    if changes:
      loop.report.say(workdir.describe(changes))
    if profile_steps is not None:
      step = profile.Profiled(
        step,
        profile_steps,
        folder,
        step=int(state.step),
        say=loop.report.say,
      )
      stack.callback(step.close)
    ran = status.recording(folder, int(state.step), plan.total_steps)
    with ran as record:
      ended, last_step = loop.run(step, state, frozen)
      record(ended, last_step)
    run_page.write_at_end(folder)
  return ended != "stopped"


def compile_step(
  plan: Plan, text_len: int | None = None
) -> jax.stages.Compiled:
  """Compiles the step, and prints how long it took."""
  what = "" if text_len is None else f" for {text_len} tokens of text"
  with (
    progress.stage(f"compiling the step{what}") as details,
    compilation_cache.watching() as compiled,
  ):
    step = plan.compile_step(text_len)
    details += ["from the cache"] * compiled.from_cache
  return step


def fit(
  plan: Plan,
) -> tuple[Plan, jax.stages.Compiled, text_lengths.Steps | jax.stages.Compiled]:
  """Lays out the step so that it fits, and prints what was tried.

  Returns the plan, the step of the longest texts, and that of all, compiled as
  needed.
  """
  usable, has_several = fitting.usable_bytes(), len(plan.text_lengths) > 1

  def compile_longest(plan):
    return compile_step(plan, plan.longest_text if has_several else None)

  plan, compiled, tried = fitting.fit(plan, usable, compile_longest)
  progress.say([found.describe(usable) for found in tried])
  if not has_several:
    return plan, compiled, compiled
  others = functools.partial(compile_step, plan)
  step = text_lengths.Steps(others, plan.longest_text, compiled)
  return plan, compiled, step


def dry_run(config: ConfigDict, *, verbose: bool = False) -> None:
  """Prints the tables that a training begins with, and allocates nothing."""
  writers.check(common.complete(config).writers)
  plan = Plan(config)
  tok = plan.task.make_tokenizer(config, plan.model)
  evaluators = inputs.make_evaluators(config, tok, **plan.sizes)
  best = Best(config, evaluators)
  table = checks.check(plan, tok, evaluators)
  start.check_weights(plan)
  plan, compiled, _ = fit(plan)
  print(plan.describe(compiled, verbose=verbose))
  print(table)
  if best.name is not None:
    print(best.describe_rule())


def try_learning_rates(
  config: ConfigDict, folder: str | os.PathLike | None
) -> None:
  """Prints the losses of a few steps at growing rates, see find_lr.py.

  Args:
    config: of the run, whose data, weights and step are used.
    folder: to write find_lr.json to; None: nothing is written.
  """
  plan = Plan(find_lr.growing(config))
  tok = plan.task.make_tokenizer(config, plan.model)
  progress.say([checks.check(plan, tok, [])])
  start.check_weights(plan)
  plan, _, step = fit(plan)
  with progress.stage("weights"):
    state, frozen = start.initial(plan)
  batches = inputs.train_batches(plan.config, plan.sources, tok)
  shapes = plan.step_arguments()[-1]
  with (
    contextlib.closing(inputs.Feed(batches, shapes, plan.text_lengths)) as feed,
    progress.stage(f"trying {find_lr.STEPS} learning rates"),
  ):
    found = find_lr.find_lr(step, state, frozen, feed)
  progress.say([found.describe()])
  if folder and jax.process_index() == 0:
    found.write(folder)


def main() -> None:
  """Runs what the command line says."""
  parser = command_line.parser(__doc__)
  parser.add_argument("--workdir", help="folder of the run")
  command_line.add_switch(parser, "dry_run", "print the plan and stop")
  command_line.add_switch(
    parser,
    "verbose",
    "print every parameter, and all that is measured, not the loss alone",
  )
  parser.add_argument(
    "--profile_steps",
    metavar="FIRST:LAST",
    help="trace the steps after FIRST up to LAST, such as 10:13, into the "
    "folder profile of the run, and print the ops that took longest",
  )
  command_line.add_switch(
    parser,
    "find_lr",
    "print the loss of a hundred steps at growing learning rates, and stop",
  )
  command_line.add_switch(
    parser,
    "override_config",
    "resume a run though values of its config that change the training are "
    "others, and write them into its history.jsonl",
  )
  processes.add_arguments(parser)
  args, config = command_line.parse(parser)
  steps = args.profile_steps and profile.parse(args.profile_steps)
  processes.prepare(vars(args))
  with processes.lost_process_in_one_line():
    if args.dry_run:
      dry_run(config, verbose=args.verbose)
    elif args.find_lr:
      try_learning_rates(config, args.workdir)
    elif not args.workdir:
      raise ValueError("no --workdir given, expected the folder of the run")
    elif not train(
      config,
      args.workdir,
      override=args.override_config,
      verbose=args.verbose,
      profile_steps=steps,
    ):
      sys.exit(os.EX_TEMPFAIL)  # not 0: it is to be started again


if __name__ == "__main__":
  command_line.run(main)
