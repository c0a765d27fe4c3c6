"""Stage 1: SigLIP and Gemma joined, and pre-trained together at 224 pixels.

python -m trainers.train --config configs/stages/stage1.py --workdir runs/stage1
"""

from ml_collections import ConfigDict

from configs.stages import pretraining


def get_config(argument: str | None = None) -> ConfigDict:
  """Arguments: those of pretraining.parse; img and llm, the two checkpoints.

  They are the outputs of stage 0, or published: presets, npz files, folders of
  Hugging Face. With both empty all weights are random.
  """
  arg = pretraining.parse(
    argument,
    img="runs/stage0_siglip",
    llm="runs/stage0_gemma",
    res=224,
    text_len=128,
    batch_size=2048,
    examples=1_000_000_000,
    seen=0,
  )
  init = dict(img=arg.img, llm=arg.llm) if arg.img or arg.llm else ""
  return pretraining.make(arg, init, fine=1.0, slow_image_tower=True)
