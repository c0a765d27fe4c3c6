"""OCR-VQA: questions about covers of books.

Fields: image, question, answer.
"""

from ml_collections import ConfigDict

from configs.transfers.published import at, make, parse, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    data_set="ocrvqa",
    train=tfds("ocrvqa_id", "train+val[20000:]", final="train+val"),
    evals={
      "minival": tfds("ocrvqa_id", "val[:20000]"),
      "test": tfds("ocrvqa_id", "test", last=True),
    },
    metric="vqa(lower=True)",
    batch_size=128,
    eval_batch_size=256,
    total_epochs=3.0,
    learning_rate=at(arg.res, {224: 3e-6, 896: 1e-5}),
  )
