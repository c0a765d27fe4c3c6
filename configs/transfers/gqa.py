"""GQA: questions made of scene graphs; and xGQA without training on it.

Fields: image, question, answer. The questions of xGQA are in eight languages,
the answers in English; those of more tokens than text_len are cut.
"""

from ml_collections import ConfigDict

from configs.transfers.published import at, make, parse, tfds

LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  return make(
    arg,
    data_set="gqa",
    train=tfds("gqa", "train_balanced", final="train_balanced+val_balanced"),
    evals={
      "val": tfds("gqa", "val_balanced"),
      "testdev": tfds("gqa", "testdev_balanced", last=True),
      **{
        f"xgqa_{x}": tfds("xgqa", f"test_zs_{x}", file=f"xgqa_{x}")
        for x in LANGUAGES
      },
    },
    tune=at(arg.res, {224: "full", 448: "decoder"}),
    antialias=False,
    total_epochs=1.0,
  )
