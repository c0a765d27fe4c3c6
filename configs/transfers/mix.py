"""A mix of several transfers: one model for all of them.

    python -m trainers.train --workdir runs/mix \
      --config configs/transfers/mix.py:transfers=cococap+vqav2+refcoco_seg

Each is as its own config says: data, prompts, answers and evaluators, which are
named vqav2_minival and so on. Image sizes, text length, optimizer and length
of the training are those of the mix. The published mix models were trained "on
a mixture of all our transfer tasks, with a balancing intended to make it nice
to use" (big_vision's README of PaliGemma), with 256 tokens at 224 pixels and
512 at 448; the shares were not published. Here all transfers have the weight 1,
and of one transfer all examples are as likely:
--config.train.sources.vqav2_train.weight=3 changes one.
"""

from ml_collections import ConfigDict

from configs import common
from configs.transfers import (
  ai2d,
  aokvqa_da,
  chartqa,
  cococap,
  docvqa,
  forkme,
  gqa,
  infovqa,
  ocrvqa,
  okvqa,
  published,
  refcoco_seg,
  science_qa,
  stvqa,
  tallyqa,
  textcaps,
  textvqa,
  vqav2,
)
from paligemma import registry

TRANSFERS = {
  "ai2d": ai2d,
  "aokvqa_da": aokvqa_da,
  "chartqa": chartqa,
  "cococap": cococap,
  "docvqa": docvqa,
  "gqa": gqa,
  "infovqa": infovqa,
  "ocrvqa": ocrvqa,
  "okvqa": okvqa,
  "refcoco_seg": refcoco_seg,
  "science_qa": science_qa,
  "stvqa": stvqa,
  "tallyqa": tallyqa,
  "textcaps": textcaps,
  "textvqa": textvqa,
  "vqav2": vqav2,
}


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and transfers, epochs.

  `data` is that of each transfer by default, "tfds", or a folder with one for
  each transfer.
  """
  arg = published.parse(argument, transfers="+".join(TRANSFERS), epochs=1.0)
  init = f"{arg.variant}_pt_{arg.res}" if arg.init == "pt" else arg.init
  config = forkme.get_config(
    f"variant={arg.variant},res={arg.res},init={init},batch_size=256,"
    f"tokenizer={arg.tokenizer},tune={arg.tune or 'full'},epochs={arg.epochs},"
    f"text_len={published.at(arg.res, {224: 256, 448: 512})}"
  )
  config.train.sources, config.evals = ConfigDict(), ConfigDict()
  for name in arg.transfers.split("+"):
    module = registry.lookup(TRANSFERS, name, "transfer")
    own = arg.data not in ("", "tfds")
    data = f"{arg.data}/{name}" if own else arg.data
    one = module.get_config(
      f"variant={arg.variant},res={arg.res},init={init},data={data},"
      f"splits={arg.splits},final_split={str(arg.final_split).lower()}"
    )
    for part, spec in one.train.sources.items():
      spec.ops = (*spec.ops, *one.train.augment, *one.train.ops)
      spec.weight, spec.group = 1 / len(one.train.sources), name
      config.train.sources[f"{name}_{part}"] = spec
    for part, spec in one.evals.items():
      spec.ops = one.train.ops if spec.ops is None else spec.ops
      spec.resize = spec.resize or one.train.resize
      config.evals[f"{name}_{part}"] = spec
  config.train.too_long = "truncate"
  config.train.resize = "reference_uint8"
  config.optimizer_args = dict(b2=0.999)
  return common.complete(config)
