"""ST-VQA: questions about text in scenes.

Fields: image, question, answers (a list).

The test server's ANLS, which is the published score, differs in details from
that of this metric: metric="anls" gives both.
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, at, make, parse, tfds


def get_config(
  argument: str | None = None,
  *,
  name: str = "stvqa",
  label_smoothing: float = 0.1,
) -> ConfigDict:
  arg = parse(argument, res=896)
  return make(
    arg,
    data_set=name,
    train=tfds(name, "train", final="train+val"),
    evals={x: tfds(name, x, hidden=x == "test") for x in ("val", "test")},
    text_len=48,
    **ANSWERS,
    lower=True,
    metric="vqa(lower=True)",
    batch_size=at(arg.res, {224: 256, 448: 128, 896: 32}),
    eval_batch_size=256,
    total_epochs=3.0,
    learning_rate=at(arg.res, {224: 1e-5, 896: 3e-6}),
    weight_decay=at(arg.res, {224: 1e-6, 896: 3e-7}),
    label_smoothing=label_smoothing,
  )
