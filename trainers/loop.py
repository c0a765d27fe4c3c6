"""The loop over steps: log, save, evaluate, and stop when asked to."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from paligemma import disk, io, quantization, tree
from paligemma.checkpoints import npz, samples
from paligemma.checkpoints.lora import adapters
from paligemma.checkpoints.training.steps import StepCheckpoints
from paligemma.data.batches import TrainBatches
from paligemma.lora import apply as lora
from paligemma.planning import flops
from paligemma.training import sharding
from paligemma.tree import Flat
from trainers import (
  inputs,
  preemption,
  processes,
  progress,
  report,
  schedule,
  workdir,
)
from trainers.best import EMA, Best
from trainers.lock import Lock
from trainers.plan import Plan
from trainers.start import checkpoint_metadata, frozen_source
from trainers.state import TrainState
from trainers.step import Step


class Loop:
  """One run of the loop; `run` goes from the state given to the last step."""

  def __init__(
    self,
    plan: Plan,
    folder: epath.Path,
    checkpoints: StepCheckpoints,
    batches: TrainBatches,
    evaluators: Sequence[inputs.Scheduled],
    *,
    best: Best,
    notice: preemption.Preemption,
    lock: Lock | None,
    bundle: Mapping[str, Any] | None,
    verbose: bool = False,
  ):
    self.plan = plan
    self.folder = folder
    self.checkpoints = checkpoints
    self.feed = inputs.Feed(
      batches, plan.step_arguments()[-1], plan.text_lengths
    )
    self.text_lens = []  # of the batches since the last log
    self.evaluators = evaluators
    sizes = plan.sizes
    self.log_every = schedule.steps(plan.config, "log", **sizes)
    self.init = frozen_source(plan.config)
    self.metadata = checkpoint_metadata(plan.config)
    latest = checkpoints.latest_step()
    # Examples of all processes before this start, and of this one since.
    self.counts_before = {"skipped": 0, "truncated": 0, "empty_batches": 0}
    self.counts = {"skipped": 0, "truncated": 0}
    if latest is not None:
      self.counts_before |= checkpoints.metadata(latest)["counts"]
    self.empty = set()  # steps since this start whose batch had no example
    self.skipped_steps = 0  # whose gradient was not finite
    self.best = best
    if latest is not None:
      best.restore(checkpoints.metadata(latest).get("best", {}))
    self.notice = notice
    self.lock = lock
    self.verbose = verbose
    repeated = self.due(latest or 0)
    if plan.config.early_stop is not None:  # it may be the last step
      repeated = [evaluator for evaluator, _ in evaluators]
    self.report = report.Report(
      folder,
      first_step=latest or 0,
      total_steps=plan.total_steps,
      repeated=[evaluator.name for evaluator in repeated],
      writes=plan.config.writers,
      config=workdir.as_json(plan.config),
      bundle=bundle,
    )

  def run(
    self,
    compiled: Step,
    train_state: TrainState,
    frozen: Flat,
  ) -> tuple[str, int]:
    """Trains from the step of the state to the last, and writes final.npz.

    The last step is that of the plan, or the one at which the run stops early.
    Returns how it ended, see status.py, and the step.
    """
    step, total = int(train_state.step), self.plan.total_steps
    if (scale := train_state.opt_state.loss_scale) is not None:
      self.skipped_steps = int(scale.skipped_steps)
    self.notice.hold()
    # Also where it resumes: it may have been stopped before it evaluated.
    if not self.evaluate(step, train_state, frozen, self.due(step)):
      return self.leave(step)
    clock, before = _Clock(step, self.feed), None
    while step < total and not self.best.has_stopped_improving:
      batch, counts = next(self.feed)
      for name, count in counts.items():
        self.counts[name] += count
      if self.plan.pads_texts:
        self.text_lens.append(batch["text"].shape[1] - 1)
      train_state, measured = compiled(train_state, frozen, batch)
      if processes.devices_wait_for_each_other():
        jax.block_until_ready(train_state)
      if before is not None:
        self.check(step, before)  # while the next step is running
      step, before = step + 1, measured
      if self.lock is not None:
        self.lock.check()
      if step < total:
        self.feed.prefetch()
      if _due(step, self.log_every, total):
        self.log(step, measured, clock)
      stopping = self.notice.requested(step)
      if stopping or _due(step, self.plan.save_every, total):
        self.save(step, train_state, measured)
      if stopping:
        return self.leave(step)
      if self.due(step):
        self.check(step, measured)
        finished = self.evaluate(step, train_state, frozen, self.due(step))
        if not finished or self.best.has_stopped_improving:
          self.save(step, train_state, measured)
        if not finished:
          return self.leave(step)
        clock.restart(step)
      self.report.step(step)
    if step < total:
      self.report.say(
        f"step {step}: the run ends early, as the last "
        f"{self.plan.config.early_stop} evaluations gave no better "
        f"{self.best.name}"
      )
      ran = {evaluator.name for evaluator in self.due(step)}
      others = [e for e, _ in self.evaluators if e.name not in ran]
      if not self.evaluate(step, train_state, frozen, others):
        return self.leave(step)
    try:
      trained = train_state.ema or train_state.trainable
      self.write("final", step, {**frozen, **trained})
    except preemption.Stopped:
      return self.leave(step)
    if self.best.name is not None:
      self.report.say(self.best.describe())
    return "finished" if step == total else "ended early", step

  def leave(self, step: int) -> tuple[str, int]:
    """Reports that the run stops because it was asked to."""
    saved = "saved, " if step else ""
    self.report.say(f"stopped at step {step}: {saved}start again to resume")
    return "stopped", step

  def log(self, step: int, measured: Mapping[str, Any], clock: _Clock) -> None:
    """Writes the measurements of a step and the speed since the last log."""
    measured = self.check(step, measured)
    if not measured["num_examples"]:  # nothing has a loss
      for name in ("loss", "grad_norm", "update_norm"):
        del measured[name]
    done, seconds, waited = clock.restart(step)
    examples = measured["num_examples"] * done / seconds
    peak = flops.peak_per_second()
    if peak:
      tokens, lens = measured.get("num_tokens"), self.text_lens or [None]
      counted = [self.plan.count_flops(tokens, length) for length in lens]
      speed = sum(counted) / len(counted) * done / seconds
    self.text_lens = []
    counts, rates = self.total_counts(), self.learning_rates(step)
    if "num_tokens" in measured:
      measured["tokens_per_second"] = measured["num_tokens"] * done / seconds
    line = ""
    if not self.verbose:
      left = (self.plan.total_steps - step) * seconds / done
      line = self.summary(
        step, measured.get("loss"), rates, counts, examples, left
      )
    self.report.write(
      step,
      {
        **measured,
        **counts,
        **rates,
        "examples_per_second": examples,
        "waited_for_data": waited / seconds,
        "mfu": peak and speed / peak,
        "peak_memory_gib": report.peak_memory_gib(),
      },
      line,
    )

  def summary(
    self,
    step: int,
    loss: float | None,
    rates: Mapping[str, jax.Array],
    counts: Mapping[str, int],
    examples_per_second: float,
    seconds_left: float,
  ) -> str:
    """What is printed of a step; metrics.jsonl has all."""
    total, sizes = self.plan.total_steps, self.plan.sizes
    epoch = step * sizes["batch_size"] / sizes["examples_per_epoch"]
    return "  ".join(
      [
        f"step {step} of {total}  {step / total:.0%}  epoch {epoch:.2f}",
        f"{tqdm.format_interval(seconds_left)} left",
        "no loss" if loss is None else f"loss {loss:.4g}",
        *(f"{name} {float(rate):.3g}" for name, rate in rates.items()),
        f"{examples_per_second:.3g} examples/s",
        *(f"{name} {count}" for name, count in counts.items() if count),
      ]
    )

  def learning_rates(self, step: int) -> dict[str, jax.Array]:
    """The learning rates that the last step used, by name."""
    steps = step - self.counts_before["empty_batches"] - len(self.empty)
    steps -= int(self.skipped_steps)
    return {
      f"learning_rate/{regex}".removesuffix("/.*"): at(max(steps - 1, 0))
      for regex, at in self.plan.learning_rates.items()
    }

  def total_counts(self) -> dict[str, int]:
    """Examples skipped and cut, and batches without any, by all processes."""
    here = np.array(list(self.counts.values()))
    everywhere = multihost_utils.process_allgather(here[None], tiled=True)
    now = dict(zip(self.counts, everywhere.sum(axis=0).tolist(), strict=True))
    now["empty_batches"] = len(self.empty)
    return {
      name: self.counts_before[name] + count for name, count in now.items()
    }

  def check(self, step: int, measured: Mapping[str, Any]) -> dict[str, float]:
    """Fetches the measurements of a step; raises if it went wrong."""
    measured = {name: float(value) for name, value in measured.items()}
    if not measured["num_examples"]:
      self.count_empty(step)
    elif not measured.get("num_tokens", 1):
      raise ValueError(
        f"the batch of step {step} supervises no token: its examples have no "
        "answer; check the data"
      )
    for name in ("loss", "grad_norm", "param_norm"):
      if not math.isfinite(measured[name]):
        latest = self.checkpoints.latest_step()
        good = "there is no checkpoint yet"
        if latest is not None:
          good = f"the last good checkpoint is that of step {latest}"
        raise ValueError(
          f"step {step}: {name} is {measured[name]}; {good} in {self.folder}; "
          "lower the learning rate or clip the gradients"
        )
    if (skipped := measured.get("skipped_steps", 0)) > self.skipped_steps:
      self.skipped_steps = skipped
      self.report.say(
        f"step {step}: a gradient exceeds float16 at loss scale "
        f"{measured['loss_scale']:.6g}, which is halved; the weights stay as "
        "they are"
      )
    return measured

  def count_empty(self, step: int) -> None:
    """Reports a batch that is all skipped; raises after an epoch of these."""
    if step in self.empty:
      return
    self.empty.add(step)
    sizes = self.plan.sizes
    epoch = math.ceil(sizes["examples_per_epoch"] / sizes["batch_size"])
    latest = range(step - epoch + 1, step + 1)
    if self.empty.issuperset(latest):
      raise ValueError(
        f"step {step}: every example of the last {len(latest)} batches, a "
        "whole epoch, was skipped; check the data"
      )
    self.report.say(
      f"step {step}: every example of its batch was skipped; the weights stay "
      "as they are"
    )

  def save(
    self, step: int, train_state: TrainState, measured: Mapping[str, Any]
  ) -> None:
    """Starts writing a checkpoint of a state that is known to be finite."""
    self.check(step, measured)
    self.checkpoints.save(
      step,
      train_state.trainable,
      train_state.opt_state,
      ema=train_state.ema,
      data_iterator=self.feed,
      metadata={
        "config": workdir.as_json(self.plan.config),
        "init": self.init,
        "counts": self.total_counts(),
        "best": self.best.state(),
      },
    )

  def due(self, step: int) -> list[inputs.Evaluator]:
    """The evaluators to run after `step` steps; every 0: after the last."""
    return [
      evaluator
      for evaluator, every in self.evaluators
      if (step == 0 and every != 0) or _due(step, every, self.plan.total_steps)
    ]

  def evaluate(
    self,
    step: int,
    train_state: TrainState,
    frozen: Flat,
    evaluators: Sequence[inputs.Evaluator],
  ) -> bool:
    """Runs evaluators, and keeps the weights if they are the best so far.

    Moving averages, if there are any, are evaluated after the weights
    themselves. Returns False if the run was to stop meanwhile.
    """
    versions = {"": train_state.trainable}
    if train_state.ema is not None:
      versions[EMA] = train_state.ema
    try:
      for evaluator, version in itertools.product(evaluators, versions):
        name = f"{evaluator.name}{version}"
        weights = {**frozen, **versions[version]}
        with progress.bar(name) as show:

          def go_on(done, total, show=show):
            show(done, total)
            self.go_on(step)

          named = dataclasses.replace(evaluator, name=name)
          scores = named.run(
            self.plan.model,
            tree.unflatten(weights),
            self.plan.mesh,
            output_dir=self.folder,
            rng=jax.random.key(self.plan.config.seed),
            progress=go_on,
          )
        self.keep_predictions(step, name)
        scores = {f"{name}/{k}": v for k, v in scores.items()}
        self.report.write(step, scores)
        self.report.show(step, named)
        self.keep_best(step, name, scores, weights)
    except preemption.Stopped:
      return False
    return True

  def keep_predictions(self, step: int, evaluator: str) -> None:
    """Copies the predictions of a step, if it has any, from where the next
    evaluation will replace them."""
    path = self.folder / evaluator / "predictions.jsonl"
    if jax.process_index() == 0 and path.exists():
      kept = path.with_name(f"predictions-{step}.jsonl")
      disk.write(kept, path.read_bytes())

  def keep_best(
    self, step: int, evaluator: str, scores: Mapping[str, float], weights: Flat
  ) -> None:
    """Writes the weights, if an evaluator has given them the best score yet."""
    score = self.best.find(evaluator, scores)
    if score is None:
      return
    if self.best.is_improved_by(step, score):
      self.write("best", step, weights)
      if jax.process_index() == 0:
        self.best.write(self.folder, step, score)
    self.best.add(step, score)

  def go_on(self, step: int) -> None:
    """Raises preemption.Stopped if the run was asked to stop."""
    if self.notice.requested(step):
      raise preemption.Stopped

  def write(self, stem: str, step: int, weights: Flat) -> None:
    """Writes all parameters, one at a time, or the adapters alone.

    Args:
      stem: "final" or "best", of the name of the file.
      step: of the weights.
      weights: all, those that are frozen too.

    Raises:
      preemption.Stopped: the run was asked to stop; there is no new file.
    """
    model, path = self.plan.model, self.folder / f"{stem}.npz"
    if lora.lora_of(model) is not None:
      stem = "adapter" if stem == "final" else stem
      path = self.folder / f"{stem}.safetensors"
      weights, base = tree.partition(weights, lora.is_adapter(weights))
      found = samples.take(base, lora.sharding_of(base))

    def fetch(show):
      done, total = 0, sum(array.nbytes for array in weights.values())
      for name, array in sorted(weights.items()):
        self.go_on(step)
        show(done, total)
        yield name, sharding.fetch(array)
        show(done := done + array.nbytes, total)

    with progress.copying(f"writing {path}") as show:
      arrays = fetch(show)
      if jax.process_index() != 0:
        for _ in arrays:
          pass
      elif path.suffix == ".npz":
        npz.save(
          path,
          arrays,
          **io.model_fields(model) | {"metadata": self.metadata},
          compute_dtype=io.computes_in(model),
        )
      else:
        held_in = self.plan.config.frozen_dtype
        base = held_in if held_in in quantization.KINDS else ""
        adapters.write(path, model, dict(arrays), base=base, weights=found)

  def close(self) -> None:
    """Ends the data workers and files."""
    self.feed.close()
    self.report.close()


class _Clock:
  """Steps, seconds, and seconds waited for data since the last restart."""

  def __init__(self, step, feed):
    self.feed = feed
    self.started = step, time.perf_counter(), feed.seconds_waited

  def restart(self, step):
    now = step, time.perf_counter(), self.feed.seconds_waited
    before, self.started = self.started, now
    return [b - a for a, b in zip(before, now, strict=True)]


def _due(step, every, total):
  """At the end, and every so often; the last time but one not just before."""
  return step == total or bool(
    every and step % every == 0 and 2 * (total - step) >= every
  )
