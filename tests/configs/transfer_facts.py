"""What is known of the published transfers, and an example of each.

Written down from big_vision, configs/proj/paligemma/transfers, where a config
has a `sweep_best` from that; see there for each value.
"""

import dataclasses
from typing import Any

RESOLUTIONS = (224, 448, 896)
BOX = [4.0, 6.0, 20.0, 30.0]
# A mask of 31 x 43 pixels, column by column: rows 5 to 19, columns 8 to 25.
MASK = {
  "size": [31, 43],
  "counts": [8 * 31 + 5, 15, *[16, 15] * 17, 17 * 31 + 11],
}
CAPTIONS = ["A red barn", "A red barn", "A red barn"]


@dataclasses.dataclass(frozen=True)
class Facts:
  """One row of the table.

  Attributes:
    hyper: (epochs, lr, batch size, label smoothing, dropout, weight decay) by
      resolution; one without takes those of the next lower.
    text_len: of prompt and answer.
    metric: of every evaluator whose answers are known.
    key: field that it reads.
    example: a line of JSONL.
    prefix, suffix: what the ops write of it in training.
    res: default resolution.
    tune: what trains, by resolution as above.
    sampler: of the evaluators.
    evals: (name, TFDS builder and split) of some evaluators, in their order.
    eval_batch_size: of the generated answers.
    train: TFDS builders and splits to train on, without and with final_split.
    frames: of an image.
    antialias: whether a shrinking image is smoothed, in training and when
      answers are generated; None where nothing is truncated to uint8 either.
    optimizer: (name, arguments, clip_norm).
    schedule: of all weights that train.
    hidden: evaluators whose answers are not public.
    tfds: fields of the example where they have another name or form in TFDS.
  """

  hyper: dict[int, tuple]
  text_len: int
  metric: str
  key: str
  example: dict[str, Any]
  prefix: str
  suffix: str
  evals: dict[str, str]
  train: tuple[str, str] = ("", "")
  res: int = 224
  tune: dict[int, str] = dataclasses.field(
    default_factory=lambda: {224: "full"}
  )
  sampler: str = "greedy"
  eval_batch_size: int = 1024
  frames: int = 0
  antialias: tuple[bool | None, bool | None] = (True, True)
  optimizer: tuple[str, dict, float | None] = ("adam", {"b2": 0.999}, 1.0)
  schedule: dict[str, Any] = dataclasses.field(
    default_factory=lambda: {"decay": "cosine", "warmup_percent": 0.05}
  )
  hidden: tuple[str, ...] = ()
  tfds: dict[str, Any] | None = None

  def at(self, res, of="hyper"):
    table = getattr(self, of)
    return table[max((r for r in table if r <= res), default=min(table))]


def caption(**facts):
  """Captions, of which one is chosen."""
  facts = {
    "metric": "captions",
    "key": "captions",
    "example": {"image": "a.png", "captions": CAPTIONS},
    "prefix": "caption en",
    "suffix": "A red barn",
    **facts,
  }
  return Facts(**facts)


def question(several=True, **facts):
  """Questions with one answer, or with those of several people."""
  answer = {"answers": ["Two", "Two"]} if several else {"answer": "Two"}
  (key,) = answer
  facts = {
    "metric": "vqa",
    "key": key,
    "prefix": "answer en How many?",
    "suffix": "Two",
    **facts,
  }
  example = {"image": "a.png", "question": "How many?", **answer}
  facts["example"] = example | facts.get("example", {})
  return Facts(**facts)


def of_video(make, **facts):
  facts["example"] = {"video": "b.mp4", **facts.pop("example", {})}
  made = make(
    **{
      "evals": {"val": ""},
      "eval_batch_size": 128,
      "frames": 16,
      "antialias": (None, None),
    }
    | facts
  )
  example = {k: v for k, v in made.example.items() if k != "image"}
  if make is caption:
    example["captions"] = CAPTIONS
  return dataclasses.replace(made, example=example)


VIT_FROZEN = {224: "decoder"}
CHOICES = ["a dog", "a cat"]

FACTS = {
  "cococap": caption(
    antialias=(False, False),
    hyper={224: (5, 1e-5, 256, 0, 0, 1e-6)},
    text_len=32,
    sampler="beam(beam_size=2)",
    train=(
      "coco_captions:train[:98%]+restval",
      "coco_captions:train+restval",
    ),
    evals={
      "minival": "coco_captions:train[-2%:]",
      "val": "coco_captions:val",
      "nocaps": "nocaps:val",
    },
    tfds={"captions": {"text": CAPTIONS, "id": [1, 2, 3]}},
  ),
  "coco35l": caption(
    antialias=(False, False),
    hyper={224: (None, 1e-5, 256, 0, 0, 1e-6)},
    text_len=32,
    example={"image": "a.png", "captions": CAPTIONS, "language": "fil"},
    prefix="caption fil",
    train=("coco35l:train_ar", "coco35l:train_ar"),
    evals={"dev_ar": "coco35l:dev_ar", "xm3600_quz": "xm3600:quz"},
  ),
  "textcaps": caption(
    antialias=(False, False),
    hyper={224: (5, 1e-5, 256, 0, 0, 1e-6)},
    text_len=32,
    suffix="a red barn",
    sampler="beam(beam_size=3)",
    train=("text_caps:train[:98%]", "text_caps:train"),
    evals={"minival": "text_caps:train[-2%:]", "val": "text_caps:val"},
    tfds={"texts": CAPTIONS},
  ),
  "scicap": caption(
    antialias=(False, False),
    hyper={224: (80, 3e-5, 256, 0.1, 0.1, 0)},
    text_len=96,
    key="caption",
    example={"image": "a.png", "caption": "a red barn"},
    suffix="a red barn",
    train=(
      "scicap/first_sentence_subfig_no:train",
      "scicap/first_sentence_subfig_no:train+val",
    ),
    evals={
      "val": "scicap/first_sentence_subfig_no:val",
      "test": "scicap/first_sentence_subfig_no:test",
    },
    tfds={
      "caption/lowercase_and_token_and_remove_figure_index": "a red barn",
      "caption": None,
    },
  ),
  "screen2words": caption(
    antialias=(False, False),
    hyper={224: (10, 1e-5, 256, 0.2, 0.3, 0)},
    text_len=24,
    train=("screen2_words:train", "screen2_words:train+dev"),
    evals={"dev": "screen2_words:dev", "test": "screen2_words:test"},
    tfds={"summary": CAPTIONS},
  ),
  "widgetcap": caption(
    hyper={224: (4, 3e-6, 64, 0.1, 0.1, 3e-7)},
    text_len=32,
    example={
      "image": "a.png",
      "captions": CAPTIONS,
      "bbox": [0.1, 0.2, 0.5, 0.6],
    },
    train=("widgetcap:train", "widgetcap:train+dev"),
    evals={"dev": "widgetcap:dev", "test": "widgetcap:test"},
    tfds={"texts": CAPTIONS},
  ),
  "vqav2": question(
    hidden=("test",),
    hyper={224: (10, 1e-5, 256, 0, 0, 1e-6), 448: (10, 1e-5, 256, 0, 0, 0)},
    text_len=32,
    metric="vqav2",
    example={"answer_type": "number"},
    train=("vqa:train+validation[:-10240]", "vqa:train+validation"),
    evals={"minival": "vqa:validation[-10240:]", "test": "vqa:test+test-dev"},
    tfds={"question_text": "How many?"},
  ),
  "okvqa": question(
    hyper={224: (10, 5e-6, 128, 0, 0, 0)},
    text_len=32,
    train=("okvqa:train[:-10%]", "okvqa:train"),
    evals={"minival": "okvqa:train[-10%:]", "val": "okvqa:val"},
  ),
  "aokvqa_da": question(
    hidden=("test",),
    hyper={224: (10, 5e-6, 128, 0, 0, 0)},
    text_len=32,
    key="direct_answers",
    example={"direct_answers": ["Two", "Two"]},
    eval_batch_size=256,
    train=("aokvqa:train", "aokvqa:train+val"),
    evals={"val": "aokvqa:val", "test": "aokvqa:test"},
  ),
  "aokvqa_mc": question(
    hidden=("test",),
    several=False,
    hyper={224: (15, 5e-6, 128, 0, 0, 0)},
    text_len=128,
    example={"choices": CHOICES, "correct": 1},
    prefix="answer en  How many? choose from: a dog \t a cat",
    suffix="a cat",
    eval_batch_size=256,
    train=("aokvqa:train", "aokvqa:train+val"),
    evals={"val": "aokvqa:val", "test": "aokvqa:test"},
    tfds={
      "multiple_choice_possible_answers": CHOICES,
      "multiple_choice_correct_idx": 1,
    },
  ),
  "ai2d": question(
    antialias=(True, False),
    several=False,
    hyper={224: (10, 1e-5, 256, 0, 0, 1e-6)},
    text_len=128,
    example={"choices": CHOICES, "answer": "a dog"},
    prefix="answer en  How many? choose from: a dog \t a cat",
    suffix="a dog",
    train=("ai2d:train[:-1024]", "ai2d:train"),
    evals={"minival": "ai2d:train[-1024:]", "test": "ai2d:test"},
    tfds={"possible_answers": CHOICES},
  ),
  "gqa": question(
    antialias=(False, False),
    several=False,
    hyper={224: (1, 1e-5, 256, 0, 0, 0)},
    text_len=32,
    tune={224: "full", 448: "decoder"},
    train=("gqa:train_balanced", "gqa:train_balanced+val_balanced"),
    evals={
      "val": "gqa:val_balanced",
      "testdev": "gqa:testdev_balanced",
      **{
        f"xgqa_{code}": f"xgqa:test_zs_{code}"
        for code in ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
      },
    },
  ),
  "nlvr2": question(
    antialias=(False, False),
    several=False,
    hyper={
      224: (3, 1e-5, 256, 0, 0, 1e-6),
      448: (10, 3e-6, 256, 0, 0, 3e-7),
    },
    text_len=64,
    key="label",
    example={
      "image": ["a.png", "a.png"],
      "sentence": "Both are red.",
      "label": "False",
    },
    prefix="answer en Both are red.",
    suffix="False",
    frames=2,
    train=("nlvr2:train", "nlvr2:train+dev"),
    evals={
      "dev": "nlvr2:dev",
      "test": "nlvr2:test",
      **{
        f"marvl_{code}": f"marvl:test_{code}"
        for code in ("id", "sw", "ta", "tr", "zh")
      },
    },
    tfds={"image_right": b"..."},
  ),
  "science_qa": question(
    antialias=(False, False),
    several=False,
    hyper={224: (20, 1e-5, 128, 0, 0, 0)},
    text_len=512,
    res=448,
    metric="science_qa",
    key="suffix",
    example={"choices": ["a dog"], "answer": 0, "hint": ""},
    prefix="Question: How many?\nContext: N/A\nOptions: (A) a dog\nAnswer:",
    suffix="The answer is A.",
    tune=VIT_FROZEN,
    train=("science_qa:train", "science_qa:train+val"),
    evals={"val": "science_qa:val", "test": "science_qa:test"},
  ),
  "rsvqa_lr": question(
    antialias=(True, False),
    hyper={224: (3, 3e-6, 256, 0.2, 0, 0)},
    text_len=32,
    metric="rsvqa",
    example={"question_type": "comp"},
    suffix="two",
    train=("rsvqa_lr/nonum:train", "rsvqa_lr/nonum:train+val"),
    evals={"val": "rsvqa_lr/nonum:val", "test": "rsvqa_lr/nonum:test"},
  ),
  "rsvqa_hr": question(
    antialias=(True, False),
    hyper={224: (1, 1e-5, 256, 0, 0, 0)},
    text_len=32,
    metric="rsvqa",
    example={"question_type": "presence"},
    suffix="two",
    train=("rsvqa_hr/nonum:train", "rsvqa_hr/nonum:train+val"),
    evals={
      "val": "rsvqa_hr/nonum:val",
      "test": "rsvqa_hr/nonum:test",
      "test2": "rsvqa_hr/nonum:test_2",
    },
  ),
  "chartqa": question(
    several=False,
    hyper={224: (30, 1e-5, 256, 0.2, 0.1, 1e-6)},
    text_len=48,
    res=896,
    metric="chartqa",
    prefix="How many?",
    train=("chartqa/human:train", "chartqa/human:train+val"),
    evals={
      "val_human": "chartqa/human:val",
      "val_augmented": "chartqa/augmented:val",
      "test_human": "chartqa/human:test",
      "test_augmented": "chartqa/augmented:test",
    },
  ),
  "vizwizvqa": question(
    antialias=(True, False),
    hidden=("test",),
    hyper={224: (10, 1e-5, 256, 0, 0, 0)},
    text_len=48,
    train=("vizwizvqa:train", "vizwizvqa:train+val"),
    evals={"val": "vizwizvqa:val", "test": "vizwizvqa:test"},
  ),
  "tallyqa": question(
    several=False,
    hyper={
      224: (2, 1e-5, 256, 0, 0, 0),
      448: (2, 1e-5, 256, 0, 0, 1e-6),
      896: (2, 7e-6, 256, 0, 0, 7e-7),
    },
    text_len=32,
    metric="tallyqa",
    example={"answer": 12, "issimple": 1},
    suffix="12",
    eval_batch_size=256,
    train=("tallyqa:train", "tallyqa:train"),
    evals={"test": "tallyqa:test", "countbenchqa": "countbenchqa:huggingface"},
  ),
  "ocrvqa": question(
    several=False,
    hyper={224: (3, 3e-6, 128, 0, 0, 0), 896: (3, 1e-5, 128, 0, 0, 0)},
    text_len=32,
    metric="vqa(lower=True)",
    eval_batch_size=256,
    train=("ocrvqa_id:train+val[20000:]", "ocrvqa_id:train+val"),
    evals={"minival": "ocrvqa_id:val[:20000]", "test": "ocrvqa_id:test"},
  ),
  "textvqa": question(
    hidden=("test",),
    hyper={
      224: (5, 3e-6, 256, 0, 0, 0),
      448: (10, 3e-6, 256, 0, 0, 3e-7),
      896: (10, 3e-6, 256, 0, 0, 0),
    },
    text_len=32,
    metric="textvqa",
    eval_batch_size=256,
    train=("textvqa:train", "textvqa:train+val"),
    evals={"val": "textvqa:val", "test": "textvqa:test"},
  ),
  "docvqa": question(
    hidden=("test",),
    hyper={224: (10, 1e-5, 256, 0, 0, 1e-6)},
    text_len=32,
    res=896,
    metric="vqa(lower=True)",
    prefix="How many?",
    eval_batch_size=256,
    train=("docvqa:train[:-5%]", "docvqa:train+val"),
    evals={
      "minival": "docvqa:train[-5%:]",
      "val": "docvqa:val",
      "test": "docvqa:test",
    },
  ),
  "infovqa": question(
    hidden=("test",),
    hyper={
      224: (3, 1e-5, 256, 0.4, 0, 1e-6),
      448: (3, 1e-5, 128, 0.4, 0, 1e-6),
      896: (3, 3e-6, 32, 0.4, 0, 3e-7),
    },
    text_len=48,
    res=896,
    metric="vqa(lower=True)",
    suffix="two",
    eval_batch_size=256,
    train=("infovqa:train", "infovqa:train+val"),
    evals={"val": "infovqa:val", "test": "infovqa:test"},
  ),
  "stvqa": question(
    hidden=("test",),
    hyper={
      224: (3, 1e-5, 256, 0.1, 0, 1e-6),
      448: (3, 1e-5, 128, 0.1, 0, 1e-6),
      896: (3, 3e-6, 32, 0.1, 0, 3e-7),
    },
    text_len=48,
    res=896,
    metric="vqa(lower=True)",
    suffix="two",
    eval_batch_size=256,
    train=("stvqa:train", "stvqa:train+val"),
    evals={"val": "stvqa:val", "test": "stvqa:test"},
  ),
  "pope": question(
    antialias=(False, False),
    several=False,
    optimizer=("sgd", {}, 1.0),
    hyper={224: (None, 0, 256, 0, 0, 0)},
    text_len=48,
    metric="pope",
    example={"question": "Is there a dog?", "answer": "no"},
    prefix="Is there a dog?",
    suffix="no",
    eval_batch_size=256,
    train=("pope_adversarial:test", "pope_adversarial:test"),
    evals={
      "random": "pope_random:test",
      "popular": "pope_popular:test",
      "adversarial": "pope_adversarial:test",
    },
  ),
  "refcoco_seg": Facts(
    antialias=(False, False),
    hyper={
      224: (100, 3e-5, 256, 0.3, 0.1, 0),
      448: (100, 1e-5, 256, 0.3, 0, 0),
      896: (100, 1e-5, 64, 0.3, 0, 0),
    },
    text_len=48,
    res=448,
    metric="segmentation",
    key="suffix",
    example={
      "image": "a.png",
      "objects": [
        {
          "box": BOX,
          "label": "",
          "mask": MASK,
          "sentences": ["red barn", "red barn"],
        }
      ],
    },
    prefix="red barn",
    suffix="<loc0132><loc0143><loc0660><loc0714>",
    eval_batch_size=256,
    train=(
      "ref_coco_bv/refcocox_combined:1.4.0:train",
      "ref_coco_bv/refcocox_combined:1.4.0:train",
    ),
    evals={
      "refcoco_val": "ref_coco_bv/refcoco_unc:1.4.0:validation_flat",
      "refcoco_testA": "ref_coco_bv/refcoco_unc:1.4.0:testA_flat",
      "refcoco_testB": "ref_coco_bv/refcoco_unc:1.4.0:testB_flat",
      "refcocop_val": "ref_coco_bv/refcocoplus_unc:1.4.0:validation_flat",
      "refcocop_testA": "ref_coco_bv/refcocoplus_unc:1.4.0:testA_flat",
      "refcocop_testB": "ref_coco_bv/refcocoplus_unc:1.4.0:testB_flat",
      "refcocog_val": "ref_coco_bv/refcocog_umd:1.4.0:validation_flat",
      "refcocog_test": "ref_coco_bv/refcocog_umd:1.4.0:test_flat",
    },
  ),
  "msrvtt_cap": of_video(
    caption,
    hyper={224: (20, 1e-5, 128, 0, 0, 0)},
    text_len=32,
    tune=VIT_FROZEN,
  ),
  "msrvtt_qa": of_video(
    question,
    several=False,
    hyper={224: (1, 1e-5, 128, 0, 0, 0)},
    text_len=64,
    tune=VIT_FROZEN,
  ),
  "msvd_qa": of_video(
    question,
    several=False,
    hyper={224: (1, 3e-6, 128, 0, 0, 3e-7)},
    text_len=64,
    frames=8,
  ),
  "activitynet_cap": of_video(
    caption,
    hyper={224: (1, 1e-5, 128, 0, 0, 1e-6)},
    text_len=64,
    tune=VIT_FROZEN,
  ),
  "activitynet_qa": of_video(
    question,
    several=False,
    hyper={224: (1, 1e-5, 128, 0, 0, 1e-6)},
    text_len=64,
  ),
  "vatex_cap": of_video(
    caption, hyper={224: (10, 3e-6, 128, 0, 0, 3e-7)}, text_len=64
  ),
  # Of the values, 50 epochs and the prompt are published.
  "detection": Facts(
    hyper={224: (50, 1e-5, 256, 0, 0, 0)},
    text_len=512,
    res=448,
    metric="detection",
    key="objects",
    example={
      "image": "a.png",
      "height": 31,
      "width": 43,
      "objects": [{"box": BOX, "label": "cat"}],
    },
    prefix="detect all classes",
    suffix="<loc0132><loc0143><loc0660><loc0714> cat",
    eval_batch_size=256,
    train=("coco/2017:train", "coco/2017:train"),
    evals={"val": "coco/2017:validation"},
  ),
}

STRIDES = {
  "msrvtt_cap": 9,
  "msrvtt_qa": 9,
  "msvd_qa": 26,
  "activitynet_cap": 30,
  "activitynet_qa": 70,
  "vatex_cap": 7,
}


@dataclasses.dataclass(frozen=True)
class Difference:
  """Where a published recipe is not followed, on purpose.

  Attributes:
    transfers: their names; none: all.
    there: in big_vision.
    here: in this project.
    why: the reason.
  """

  transfers: tuple[str, ...]
  there: str
  here: str
  why: str


DIFFERENCES = (
  Difference(
    ("forkme",),
    "all weights by Adam at 1e-5, pictures truncated to uint8",
    "attention weights by plain SGD at 0.03, pictures not truncated; tune=full "
    "is Adam at 1e-5, clipped and warmed up as there",
    "it is the recipe of the fine-tuning notebook, which fits one GPU",
  ),
  Difference(
    ("forkme",),
    "weight decay of 3e-7 a step, on kernels of the image tower alone",
    "none",
    "it moves them by less than a thousandth in 3000 steps",
  ),
  Difference(
    ("forkme",),
    "the rows to be answered have their answer in the prompt, and the "
    "perplexity is over prompt and padding too",
    "a prompt takes no answer; the perplexity is that of the answer",
    "both are slips of that config",
  ),
  Difference(
    (),
    "matrices are multiplied in float32, which on TPUs is bfloat16",
    "in bfloat16; --config.model.dtype=float32 is float32 everywhere",
    "the same on TPUs, and half the memory elsewhere",
  ),
  Difference(
    (),
    "evaluated 4 to 20 times in a run, on some of the training data as well",
    "4 times, or once where it was once, on what is held out",
    "scores that nobody reports cost as much as those that count",
  ),
  Difference(
    (),
    "perplexity of two or three splits, of the English one in coco35l",
    "of the first that is evaluated",
    "one is enough to see a run go wrong",
  ),
  Difference(
    (),
    "a JSON file of predictions, under the names of the test server",
    "predictions.jsonl, the same for all; no metric where answers are hidden",
    "one form that every script reads",
  ),
  Difference(
    (),
    "a buffer of 50,000 examples is shuffled, the k-th answer is that of an "
    "example's hash and epoch",
    "the whole data set is shuffled; answers are drawn by seed and epoch",
    "a run is the same bit for bit after a restart and on other devices",
  ),
  Difference(
    (),
    "JPEG by a fast transform; EXIF orientation and transparency are ignored",
    "exact JPEG, up to 17 levels of 255 away; upright, over white",
    "it is what other decoders show, and what the picture means",
  ),
  Difference(
    (),
    "resolutions without a best of the sweep take the default values",
    "they take the best of the next lower resolution",
    "the defaults are older than the sweeps",
  ),
  Difference(
    ("cococap", "textcaps"),
    "every beam may end at every step and competes with those that end",
    "it does where nothing else ended",
    "see beam.search: an answer that no beam would give first is none",
  ),
  Difference(
    ("cococap", "coco35l", "textcaps"),
    "crop=ic corrects a crop by one pixel where rounding leaves the bounds",
    "it draws again",
    "the distribution is that of the definition",
  ),
  Difference(
    ("coco35l",),
    "Crossmodal-3600 is scored against captions that are not split into words",
    "against those that are",
    "the captions to train on are split",
  ),
  Difference(
    ("refcoco_seg",),
    "crop=zic_mild",
    "not offered; object_ops and image_ops have zoom, crops and flips",
    "its ops are not part of big_vision",
  ),
  Difference(
    ("refcoco_seg",),
    "5 epochs of batches of 64 unless swept",
    "the swept 100 epochs of batches of 256, at 896 of 64",
    "the published checkpoints are of those",
  ),
  Difference(
    ("pope",),
    "optimizer identity over all weights",
    "no weight is trainable",
    "it trains nothing either way, and needs no memory for it",
  ),
)
