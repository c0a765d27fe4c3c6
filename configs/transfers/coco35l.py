"""COCO captions in 35 languages, and Crossmodal-3600 without training on it.

Fields: image, captions (five), language (such as "en"). The published run of
five times 566,435 examples goes 25 times through the images of one language.

The captions to train on are split into words, those of Crossmodal-3600 by
default are not; they are compared here in the form that is.
"""

from ml_collections import ConfigDict

from configs.transfers.cococap import crop
from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops

LANGUAGES = (
  *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr"),
  *("he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl"),
  *("pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
)
LANGUAGES_XM3600 = sorted((*LANGUAGES, "quz"))
# Evaluated while it trains; the others at the end alone.
OFTEN = ("ar", "bn", "en", "id", "sw", "tr", "zh")


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and crop as in cococap."""
  arg = parse(argument, crop="rs")
  words = {"captions/tokenized": "captions"}
  evals = {}
  for code in LANGUAGES:
    last = code not in OFTEN
    evals[f"dev_{code}"] = tfds("coco35l", f"dev_{code}", last=last)
  for code in LANGUAGES_XM3600:
    last = code not in OFTEN
    evals[f"xm3600_{code}"] = tfds(
      "xm3600", code, fields=words, last=last, file="xm3600_{}"
    )
  return make(
    arg,
    data_set="coco35l",
    train={code: tfds("coco35l", f"train_{code}") for code in LANGUAGES},
    evals=evals,
    ops=(text_ops.Format("caption {language}"),),
    answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
    metric="captions",
    augment=crop(arg),
    antialias=False,
    total_examples=5 * 566_435,
    weight_decay=1e-6,
  )
