"""ScienceQA: multiple-choice questions of school, those with a picture.

Fields: image, question, choices, answer (the index of the right one, from 0),
hint; lecture and solution where afmt asks for them.
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import text_ops


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and qfmt and afmt of ScienceQA."""
  arg = parse(argument, res=448, qfmt="QCM", afmt="A")
  return make(
    arg,
    data_set="science_qa",
    train=tfds("science_qa", "train", final="train+val"),
    evals={x: tfds("science_qa", x) for x in ("val", "test")},
    text_len=512,
    ops=(text_ops.ScienceQA(arg.qfmt, arg.afmt),),
    # Over what the op above has written.
    answer_ops=(text_ops.ScienceQA(arg.qfmt, arg.afmt, shuffle=True),),
    answer_key="suffix",
    metric="science_qa",
    batch_size=128,
    tune="decoder",
    antialias=False,
    total_epochs=20.0,
  )
