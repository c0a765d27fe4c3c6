"""TextVQA: questions about text in pictures.

Fields: image (upright: the data set turns those that Open Images has turned),
question, answers (ten).
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, at, make, parse, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    data_set="textvqa",
    train=tfds("textvqa", "train", final="train+val"),
    evals={x: tfds("textvqa", x, hidden=x == "test") for x in ("val", "test")},
    **ANSWERS,
    metric="textvqa",
    eval_batch_size=256,
    total_epochs=at(arg.res, {224: 5.0, 448: 10.0}),
    learning_rate=3e-6,
    weight_decay=at(arg.res, {224: 0.0, 448: 3e-7, 896: 0.0}),
  )
