"""COCO detection: boxes and names of all objects, with noise behind them.

Fields: image, height and width in pixels, objects, a list of {"box": (y0, x0,
y1, x1) in pixels, "label": text}, with area and iscrowd where there are any.

As PaliGemma 2 was transferred (arXiv:2412.03555, appendix C): the prompt names
no class, the order of the objects is random, noise fills the answer up, and 50
epochs. What the paper does not say is ours: Adam with 1e-5, batches of 256, a
text of 512 tokens and 64 objects in all, the kinds of noise (Pix2seq) and its
label, which there is a token of its own.
"""

from ml_collections import ConfigDict

from configs.transfers.published import make, parse, tfds
from paligemma.data import object_ops, text_ops

# Labels by their number in TFDS.
_NAMES = """
  person, bicycle, car, motorcycle, airplane, bus, train, truck, boat,
  traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog,
  horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
  handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
  baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
  wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
  broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant,
  bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone,
  microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
  teddy bear, hair drier, toothbrush
"""
COCO = tuple(" ".join(name.split()) for name in _NAMES.split(","))


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of published.parse, and things: objects in an answer."""
  arg = parse(argument, res=448, things=64)
  of_tfds = object_ops.FromTfds(names=COCO)
  with_crowds = object_ops.FromTfds(names=COCO, crowds=True)
  config = make(
    arg,
    train=tfds("coco/2017", "train", ops=(of_tfds,)),
    evals={"val": tfds("coco/2017", "validation", ops=(with_crowds,))},
    text_len=512,
    ops=(text_ops.Format("detect all classes"),),
    augment=(object_ops.NoiseObjects(arg.things),),
    answer_ops=(object_ops.WriteObjects(order="random", limit=arg.things),),
    answer_key="objects",
    metric="detection",
    eval_batch_size=256,
    total_epochs=50.0,
  )
  del config.evals.pplx  # of noise, for the most part
  return config
