"""COCO captions in 35 languages, and Crossmodal-3600 without training on it.

Fields: image, captions (five), language (such as "en"). The published run of
five times 566,435 examples goes 25 times through the images of one language.

The captions to train on are split into words, those of Crossmodal-3600 by
default are not; they are compared here in the form that is.
"""

from ml_collections import ConfigDict

from configs.transfers import cococap, published
from configs.transfers.published import tfds
from paligemma.data import text_ops

LANGUAGES = (
  *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr"),
  *("he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl"),
  *("pt", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
)
LANGUAGES_XM3600 = sorted((*LANGUAGES, "quz"))
# Evaluated while it trains; the others at the end alone.
OFTEN = ("ar", "bn", "en", "id", "sw", "tr", "zh")

_WORDS = (("captions/tokenized", "captions"),)


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and crop as in cococap."""
  arg = published.parse(argument, crop="rs")
  evals = {}
  for language in LANGUAGES:
    last = language not in OFTEN
    evals[f"dev_{language}"] = tfds("coco35l", f"dev_{language}", last=last)
  for language in LANGUAGES_XM3600:
    evals[f"xm3600_{language}"] = tfds(
      "xm3600", language, fields=_WORDS, last=language not in OFTEN
    )
  return published.make(
    arg,
    train={code: tfds("coco35l", f"train_{code}") for code in LANGUAGES},
    evals=evals,
    text_len=32,
    ops=(text_ops.Format("caption {language}"),),
    answer_ops=(text_ops.Choice("captions", "suffix", replace=False),),
    answer_key="captions",
    metric="captions",
    augment=cococap.crop(arg),
    antialias=False,
    total_examples=5 * 566_435,
    learning_rate=1e-5,
    weight_decay=1e-6,
  )
