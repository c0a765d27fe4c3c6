"""Each published data set: the publisher's files become the config's fields."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from paligemma.data import image_files
from scripts.datasets import catalog, folder
from tests.scripts.datasets import publishers
from tests.scripts.datasets.publishers import ANSWERS

RAW = "../raw"
_VIZWIZ = ["unanswerable"] * 8 + ["a can"]

# Data set -> {split: a line of it}. Those of the five most used are in
# test_folder.
LINES = {
  "ai2d": {
    "train": {
      "image": "images/letters/0.png",
      "question": "Which?",
      "choices": ["x", "y", "z", "w"],
      "answer": "z",
      "question_id": "0.png-0",
    },
    "test": {
      "image": f"{RAW}/ai2d/images/42.png",
      "question": "Which?",
      "choices": ["x", "y", "z", "w"],
      "answer": "z",
      "question_id": "42.png-0",
    },
  },
  "aokvqa": {
    "val": {
      "image": f"{RAW}/val2017/000000000009.jpg",
      "question": "What barn?",
      "question_id": "22MexN",
      "choices": ["red", "blue", "green", "old"],
      "correct": 3,
      "direct_answers": ["old"] * 10,
    },
    "test": {
      "image": f"{RAW}/test2017/000000000009.jpg",
      "question": "What barn?",
      "question_id": "22MexN",
      "choices": ["red", "blue", "green", "old"],
    },
  },
  "chartqa": {
    f"{split}_{kind}": {
      "image": f"{RAW}/ChartQA Dataset/{split}/png/41699051005347.png",
      "question": kind,
      "answer": "57%",
      "imgname": "41699051005347.png",
    }
    for split in ("train", "test")
    for kind in ("human", "augmented")
  },
  "coco35l": {
    "train_fil": {
      "image": f"{RAW}/train2014/COCO_train2014_000000000001.jpg",
      "captions": ["fil 1 0 .", "fil 1 1 ."],
      "language": "fil",
    },
    # The sources of the translations, once.
    "dev_en": {
      "image": f"{RAW}/train2014/COCO_train2014_000000000001.jpg",
      "captions": ["barn 0 .", "barn 1 ."],
      "language": "en",
    },
    "xm3600_quz": {
      "image": "images/00ab.jpg",
      "captions": ["quz , one ."],
      "language": "quz",
    },
  },
  "gqa": {
    "train_balanced": {
      "image": f"{RAW}/images/2354786.jpg",
      "question": "Is it red?",
      "answer": "yes",
      "question_id": "02930152",
    },
    "xgqa_bn": {
      "image": f"{RAW}/images/2354786.jpg",
      "question": "bn?",
      "answer": "yes",
      "question_id": "02930152",
    },
  },
  "infovqa": {
    "train": {
      "image": f"{RAW}/infographicsvqa_images/3.jpeg",
      "question": "Which two?",
      "question_id": 7,
      "answers": ["a, b", "c"],
    },
    "val": {
      "image": f"{RAW}/infographicsvqa_images/3.jpeg",
      "question": "Which two?",
      "question_id": 7,
      "answers": ["a, b", "b, a", "c"],
    },
  },
  "mmvp": {
    "test": {
      "image": f"{RAW}/MMVP Images/1.jpg",
      "question": "Is it open? (a) Open (b) Closed",
      "answer": "(a)",
      "pair": 1,
    }
  },
  "nlvr2": {
    "train": {
      "image": [
        f"{RAW}/images/train/37/train-10171-0-img{i}.png" for i in (0, 1)
      ],
      "sentence": "Both are red.",
      "label": "False",
    },
    "test": {
      "image": [f"{RAW}/test1/test1-10171-0-img{i}.png" for i in (0, 1)],
      "sentence": "Both are red.",
      "label": "False",
    },
    "marvl_id": {
      "image": [
        f"{RAW}/images/id/images/49-Musik/{name}"
        for name in ("1e\u0301.jpg", "2.jpg")
      ],
      "sentence": "Dua.",
      "label": "True",
    },
  },
  "ocrvqa": {
    "val": {
      "image": f"{RAW}/images/02.jpg",
      "question": "Who wrote it?",
      "answer": "A. Barn",
    }
  },
  "okvqa": {
    "val": {
      "image": f"{RAW}/val2014/COCO_val2014_000000000009.jpg",
      "question": "How many, 53?",
      "question_id": 53,
      "answers": ANSWERS,
      "question_type": "how many",
      "answer_type": "number",
    }
  },
  "pope": {
    "adversarial": {
      "image": f"{RAW}/val2014/COCO_val2014_000000000009.jpg",
      "question": "Is there a dog in the image?",
      "answer": "yes",
    }
  },
  "rsvqa_hr": {
    "test_2": {
      "image": f"{RAW}/Data/5.png",
      "question": "comp?",
      "question_type": "comp",
      "answers": ["yes"],
      "question_id": 0,
    }
  },
  "rsvqa_lr": {
    "train": {
      "image": f"{RAW}/Images_LR/5.tif",
      "question": "comp?",
      "question_type": "comp",
      "answers": ["yes"],
      "question_id": 0,
    }
  },
  "scicap": {
    "train": {
      "image": f"{RAW}/scicap_data/SciCap-No-Subfig-Img/train/"
      "1001.0001v1-Figure3-train.png",
      "caption": "a barn .",
    }
  },
  "science_qa": {
    "train": {
      "image": "images/train/1/image.png",
      "question": "Which is it?",
      "choices": ["a", "b"],
      "answer": 1,
      "hint": "N/A",
      "lecture": "",
      "solution": "It is b.",
      "question_id": "1",
    }
  },
  "screen2words": {
    "dev": {
      "image": "images/combined/1.jpg",
      "captions": [f"a page, {n}" for n in range(5)],
    }
  },
  "stvqa": {
    "test": {
      "image": f"{RAW}/test_task3_images/ICDAR2013/99.jpg",
      "question": "What?",
      "question_id": 0,
    }
  },
  "tallyqa": {
    "train": {
      "image": f"{RAW}/VG_100K_2/1.jpg",
      "question": "How many dogs?",
      "answer": 3,
      "issimple": -1,
    },
    "test": {
      "image": f"{RAW}/VG_100K/1.jpg",
      "question": "How many dogs?",
      "answer": 3,
      "issimple": 0,
    },
    "countbenchqa": {
      "image": "images/countbenchqa/0.jpeg",
      "question": "How many, 0?",
      "answer": 10,
    },
  },
  "textcaps": {
    "train": {"image": f"{RAW}/train_images/a.jpg", "captions": ["One.", "3"]},
    "val": {"image": f"{RAW}/train_images/c.jpg", "captions": ["Four."]},
    "test": {"image": "images/test_images/d.jpg", "captions": []},
  },
  "vizwizvqa": {
    "train": {
      "image": f"{RAW}/train/VizWiz_train_00000001.jpg",
      "question": "What is this?",
      "question_id": "VizWiz_train_00000001.jpg",
      "answers": _VIZWIZ,
      "answerable": 0,
    },
    "test": {
      "image": f"{RAW}/test/VizWiz_test_00000001.jpg",
      "question": "What is this?",
      "question_id": "VizWiz_test_00000001.jpg",
    },
  },
  "widgetcap": {
    "train": {
      "image": f"{RAW}/combined/0.jpg",
      "captions": ["go back", "back, now"],
      "bbox": pytest.approx([0.25, 0.1, 0.5, 0.5], abs=0.01),
    }
  },
  "msrvtt_cap": {
    "val": {
      "video": f"{RAW}/TrainValVideo/video1.mp4",
      "captions": [f"video1, {n}" for n in range(20)],
    },
    "test": {
      "video": "images/TestVideo/video2.mp4",
      "captions": [f"video2, {n}" for n in range(20)],
    },
  },
  "msrvtt_qa": {
    "test": {
      "video": f"{RAW}/TrainValVideo/video2.mp4",
      "question": "what?",
      "answer": "dog",
    }
  },
  "msvd_qa": {
    "train": {
      "video": f"{RAW}/YouTubeClips/-4wsuPCjDBc_5_15.avi",
      "question": "what?",
      "answer": "dog",
    }
  },
  "activitynet_cap": {
    "val": {
      "video": f"{RAW}/clips/v_Qk_0.83_19.86.mp4",
      "captions": ["A woman walks."],
    }
  },
  "activitynet_qa": {
    "val": {"video": f"{RAW}/v_Qk.mkv", "question": "is it?", "answer": "no"}
  },
  "vatex_cap": {
    "val": {
      "video": f"{RAW}/clips/Ptf_2VRj-V0_000122_000132.mp4",
      "captions": ["One."] * 10,
    }
  },
}


def prepare(name, tmp_path):
  raw = publishers.write_all(tmp_path / "raw", getattr(publishers, name)())
  splits = {
    "coco35l": [
      *("train_de", "train_en", "train_fil", "dev_de", "dev_en"),
      *("xm3600_en", "xm3600_quz"),
    ]
  }.get(name, list(catalog.DATA_SETS[name].splits))
  out = tmp_path / "out"
  folder.prepare(name, raw, out, splits=splits)
  return splits, {
    split: [
      json.loads(line)
      for line in (out / f"{split}.jsonl").read_text().splitlines()
    ]
    for split in splits
  }


@pytest.mark.parametrize("name", LINES)
def test_fields(name, tmp_path):
  splits, found = prepare(name, tmp_path)
  for split, line in LINES[name].items():
    assert found[split][0] == line, split
  (line, *_) = LINES[name].values()
  _, wrong = folder.check(
    name, tmp_path / "out", splits=splits, decode="image" in line
  )
  # Made-up files have few examples, and some the same picture everywhere.
  unexpected = [
    line for line in wrong if "published" not in line and "share" not in line
  ]
  assert not unexpected


def test_every_data_set_is_tested():
  tested = {"cococap", "vqav2", "textvqa", "docvqa", "refcoco_seg", *LINES}
  assert tested == catalog.DATA_SETS.keys()


def test_letters_are_drawn_as_large_as_there_is_room(tmp_path):
  prepare("ai2d", tmp_path)
  pixels = image_files.decode(tmp_path / "out/images/letters/0.png").copy()
  before = image_files.decode(tmp_path / "raw/ai2d/images/0.png")
  inside = pixels[5:26, 4:25]
  assert (inside == inside[..., :1]).all(), "black on white"
  assert inside.min() < 60 and inside.max() == 255
  dark = np.argwhere(inside[..., 0] < 128)
  assert np.ptp(dark[:, 1]) > 8
  pixels[5:26, 4:25] = before[5:26, 4:25]
  assert (pixels == before).all()


def test_a_tenth_of_stvqa_is_held_out_by_its_picture(tmp_path):
  _, found = prepare("stvqa", tmp_path)
  train, val = ({x["image"] for x in found[y]} for y in ("train", "val"))
  assert not train & val
  assert len(train | val) == 41
  assert f"{RAW}/train2014/COCO_train2014_000000000009.jpg" in train | val
  assert 1 <= len(val) <= 9


def test_numbers_and_inactive_questions_of_rsvqa_are_left_out(tmp_path):
  _, found = prepare("rsvqa_lr", tmp_path)
  assert [x["question"] for x in found["train"]] == ["comp?", "presence?"]
  (tmp_path / "raw/LR_split_val_answers.json").write_text('{"answers": []}')
  with pytest.raises(ValueError, match="differ in length"):
    folder.prepare("rsvqa_lr", tmp_path / "raw", tmp_path / "out")


def test_counts_without_a_picture_or_with_a_gray_one_are_left_out(tmp_path):
  _, found = prepare("tallyqa", tmp_path)
  assert len(found["countbenchqa"]) == 1
  size = image_files.size(tmp_path / "out/images/countbenchqa/0.jpeg")
  assert size == (publishers.HEIGHT, publishers.WIDTH)


def test_videos_that_are_gone_are_left_out(tmp_path):
  raw = publishers.write_all(tmp_path / "raw", publishers.activitynet_cap())
  (raw / "clips/v_Qk_0.83_19.86.mp4").unlink()
  with pytest.raises(ValueError, match=r"1 of 2 examples name videos .*v_Qk"):
    folder.prepare("activitynet_cap", raw, tmp_path / "out")
  written = folder.prepare(
    "activitynet_cap", raw, tmp_path / "out", skip_bad=True
  )
  assert {(x.examples, x.left_out) for x in written.values()} == {(1, 1)}
  rows, wrong = folder.check("activitynet_cap", tmp_path / "out")
  assert rows[1] == ("train", "1", "1", "37,421", "1")
  assert wrong[0].endswith("37,420 less; --skip_bad left out 1")
  assert "v_Qk_17.37_60.81.mp4: " in wrong[-1]  # one byte is no video
  assert "0 more cannot be decoded" in wrong[-1]


def test_what_was_left_out_may_be_missing(tmp_path, monkeypatch):
  """And what is gone afterwards is named."""
  raw = publishers.write_all(tmp_path / "raw", publishers.activitynet_cap())
  (raw / "clips/v_Qk_0.83_19.86.mp4").unlink()
  data_set = catalog.DATA_SETS["activitynet_cap"]
  split = dataclasses.replace(data_set.splits["val"], count=2)
  only = dataclasses.replace(data_set, splits={"val": split})
  monkeypatch.setitem(catalog.DATA_SETS, "activitynet_cap", only)
  out = tmp_path / "out"
  folder.prepare("activitynet_cap", raw, out, skip_bad=True)
  check = functools.partial(
    folder.check, "activitynet_cap", out, decode=False, skip_bad=True
  )
  assert check()[1] == []
  (line,) = check(skip_bad=False)[1]
  assert line.endswith("2 were published: 1 less; --skip_bad left out 1")
  (raw / "clips/v_Qk_17.37_60.81.mp4").unlink()
  (line,) = check()[1]
  assert line.endswith("no such file, and 0 more of 1 are missing")
