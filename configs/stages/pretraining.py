"""What stages share, above all 1 and 2: pre-training on a mixture of tasks.

    python -m trainers.train --config configs/stages/stage1.py \
      --workdir runs/stage1
    python -m trainers.train --config configs/stages/stage2_448.py \
      --workdir runs/stage2_448

All weights train. The data is a folder with a JSONL for each task, see TASKS.

As published (arXiv:2407.07726, section 3.2): resolutions, text lengths, numbers
of examples, that the rate follows an infinite rsqrt schedule, that the image
tower warms up slowly and linearly in stage 1, and the kinds of tasks. The peak
of 2e-5, its half and quarter for PaliGemma 2, Adam with its default values, and
the soft caps of Gemma 2 in these stages alone are from arXiv:2412.03555,
section 3. Not found in either, and chosen here: batch sizes, lengths of warm-up
and cool-down, the timescale, weights of the tasks, the cool-down itself.
"""

from types import SimpleNamespace
from typing import Any

from ml_collections import ConfigDict

from configs import arguments
from configs.transfers import forkme
from paligemma import registry

# Each is TASK.jsonl. Those that need resolution or long texts are drawn more
# often in stage 2; the prompts are those of the published models.
TASKS = {
  "caption": "coarse",  # caption en
  "answer": "coarse",  # answer en what is in the picture?
  "question": "coarse",  # question en ANSWER
  "ground": "coarse",  # caption <locNNNN><locNNNN><locNNNN><locNNNN>
  "ocr": "fine",  # ocr
  "detect": "fine",  # detect THING ; THING
  "segment": "fine",  # segment THING ; THING
}
LEARNING_RATES = {
  "paligemma_3b": 2e-5,
  "paligemma2_3b": 1e-5,
  "paligemma2_10b": 5e-6,
  "paligemma2_28b": 5e-6,
}
WARMUP = dict(warmup_percent=0.01)
SLOW_WARMUP = dict(warmup_percent=0.1)
COOLDOWN = dict(cooldown_percent=0.05)
IMAGE_TOWER = r"img/(?!head/).*"


def from_nothing(config: ConfigDict, *, learning_rate: float) -> ConfigDict:
  """A config of stage 0: Adam at the rate of new weights, rsqrt, cool-down."""
  config.optimizer = "adam"
  config.optimizer_args = dict(b2=0.95)
  config.learning_rate = learning_rate
  config.weight_decay = 0.1 * learning_rate
  infinite = dict(decay="rsqrt", timescale_epochs=0.1, **COOLDOWN, **WARMUP)
  config.schedule = ((".*", infinite),)
  return config


def parse(argument: str | None, **defaults: Any) -> SimpleNamespace:
  """Reads the argument of stage 1 or 2.

  Args:
    argument: variant, res, text_len, batch_size, dtype, tokenizer; data, the
      folder; tasks, such as caption+ocr, default all; examples, of this stage;
      seen, examples of the stages before; timescale, the examples in which the
      learning rate falls to 0.71 of its peak.
    **defaults: those that differ.
  """
  shared = dict(
    variant="paligemma_3b",
    dtype="bfloat16",
    tokenizer="paligemma_tokenizer.model",
    data="data/pretraining",
    tasks="+".join(TASKS),
    timescale=100_000_000,
  )
  return arguments.parse(argument, **shared | defaults)


def make(
  arg: SimpleNamespace,
  init: str | dict[str, str],
  *,
  fine: float,
  slow_image_tower: bool = False,
) -> ConfigDict:
  """Makes the config of a stage.

  Args:
    arg: what `parse` returned.
    init: see configs/common.py.
    fine: weight of a task that needs resolution, where others have 1.
    slow_image_tower: whether the image tower has the slow warm-up, which keeps
      the first gradients, of a projector that is still random, away from it.
  """
  config = forkme.get_config(
    f"variant={arg.variant},res={arg.res},text_len={arg.text_len},tune=full,"
    f"batch_size={arg.batch_size},dtype={arg.dtype},tokenizer={arg.tokenizer},"
    f"val={arg.data}/val.jsonl"
  )
  config.init = init
  if arg.variant.startswith("paligemma2_"):
    config.model.llm.final_logits_softcap = 30.0

  del config.train.sources["main"]
  for task in arg.tasks.split("+"):
    kind = registry.lookup(TASKS, task, "task")
    config.train.sources[task] = dict(
      kind="jsonl",
      path=f"{arg.data}/{task}.jsonl",
      weight=fine if kind == "fine" else 1.0,
    )
  config.train.too_long = "truncate"
  del config.total_epochs
  config.total_examples = arg.examples

  config.optimizer = "adam"
  config.learning_rate = LEARNING_RATES.get(arg.variant, 1e-3)
  infinite = dict(
    decay="rsqrt",
    timescale_examples=arg.timescale,
    shift_examples=arg.seen,
    **COOLDOWN,
  )
  config.schedule = ((".*", infinite | WARMUP),)
  if slow_image_tower:
    slow = (IMAGE_TOWER, infinite | SLOW_WARMUP)
    config.schedule = (slow, *config.schedule)
  config.log_steps = 50
  return config
