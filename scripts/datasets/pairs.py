"""NLVR2 and MaRVL: sentences about two pictures.

The reference's builder is not public; files are those of the publishers
(github.com/lil-lab/nlvr, marvl-challenge.github.io), fields those of its
config. Names of pictures of MaRVL are spelled with combined or with separate
marks, as the system that unpacked them has it: both are looked for.
"""

import functools
import unicodedata
from collections.abc import Mapping
from typing import Any

from scripts.datasets.data_set import DataSet, Picture, Split
from scripts.datasets.raw import Raw

LANGUAGES = {"id": 1_128, "sw": 1_108, "ta": 1_242, "tr": 1_180, "zh": 1_012}
_NLVR2 = "https://github.com/lil-lab/nlvr/tree/master/nlvr2"
_MARVL = "https://github.com/e-bug/iglue/tree/main/datasets/marvl/zero_shot/annotations"


def _nlvr2(folder: str, x: Mapping[str, Any]) -> dict[str, Any]:
  # "dev-850-0-3" is the fourth sentence about the pictures "dev-850-0".
  stem = x["identifier"].rpartition("-")[0]
  if folder == "train":
    folder = f"train/{x['directory']}"
  return {
    "image": [f"{folder}/{stem}-img{i}.png" for i in (0, 1)],
    "sentence": x["sentence"],
    "label": _label(x["label"]),
  }


def _label(value: bool | str) -> str:
  found = str(value).capitalize()
  if found not in ("True", "False"):
    raise ValueError(f"label is {value!r:.60}, expected true or false")
  return found


def _marvl(code: str, x: Mapping[str, Any]) -> dict[str, Any]:
  def picture(name):
    path = f"{code}/images/{x['concept']}/{name}"
    forms = dict.fromkeys(
      (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFKD")))
    )
    return Picture(tuple(forms))

  return {
    "image": [picture(x["left_img"]), picture(x["right_img"])],
    "sentence": x["caption"],
    "label": _label(x["label"]),
  }


DATA_SETS = {
  "nlvr2": DataSet(
    about="Is a sentence about two pictures true? And MaRVL, which is "
    "evaluated without training on it. The pictures of NLVR2 are for those who "
    "have signed its form.",
    homepage="https://lil.nlp.cornell.edu/nlvr",
    licence="CC BY 4.0 (sentences)",
    size="18 GB",
    files={
      **{f"{x}.json": f"{_NLVR2}/data" for x in ("train", "dev", "test1")},
      **dict.fromkeys(("train", "dev", "test1"), _NLVR2),
      **{f"marvl-{code}.jsonl": _MARVL for code in LANGUAGES},
      "images": "https://marvl-challenge.github.io/download (for research)",
    },
    splits={
      **{
        split: Split(
          functools.partial(Raw.json_lines, path=f"{folder}.json"),
          functools.partial(_nlvr2, folder),
          count,
        )
        for split, folder, count in [
          ("train", "train", 86_373),
          ("dev", "dev", 6_982),
          ("test", "test1", 6_967),
        ]
      },
      **{
        f"marvl_{code}": Split(
          functools.partial(Raw.json_lines, path=f"marvl-{code}.jsonl"),
          functools.partial(_marvl, code),
          count,
        )
        for code, count in LANGUAGES.items()
      },
    },
  )
}
