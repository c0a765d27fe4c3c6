"""Captions of videos and questions about them.

The reference's builders are not public; files are those of the publishers.
Videos are taken from YouTube and disappear: with --skip_bad those that are gone
are left out, as they were of the published runs (the configs say how many were
left). A video is looked for with the endings that its download may have.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.datasets.data_set import (
  DataSet,
  Picture,
  Records,
  Split,
  paired,
)
from scripts.datasets.raw import Raw

ENDINGS = (".mp4", ".avi", ".mkv", ".webm")
_VIDEO_QA = "https://github.com/xudejing/video-question-answering"
_ACTIVITYNET = "http://activity-net.org/download.html"
_VATEX = "https://eric-xw.github.io/vatex-website"
_GONE = "Videos that are gone need --skip_bad."


def _video(*stems: str) -> Picture:
  return Picture(tuple(stem + end for stem in stems for end in ENDINGS))


def _msrvtt(raw: Raw, split: str) -> Records:
  test = split == "test"
  file = f"{'test' if test else 'train_val'}_videodatainfo.json"
  captions, videos = {}, []
  for where, key, x in raw.sections(file, ("videos", "sentences")):
    if key == "sentences":
      captions.setdefault(x["video_id"], []).append(x["caption"])
    elif x["split"] == split:
      videos.append((where, x["video_id"]))
  for where, video in videos:
    yield where, (video, captions.get(video, []))


def _captions(record: Sequence[Any]) -> dict[str, Any]:
  video, captions = record
  return {"video": _video(video), "captions": captions}


def _msrvtt_qa(x: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "video": _video(f"video{x['video_id']}"),
    "question": x["question"],
    "answer": x["answer"],
  }


def _msvd_qa(raw: Raw, split: str) -> Records:
  """Questions, each with the name of its clip on YouTube."""
  clips = {}
  for where, line in raw.lines("youtube_mapping.txt"):
    clip, _, number = line.rpartition(" ")
    if not number.startswith("vid"):
      raise ValueError(
        f'{where}: expected "CLIP vidNUMBER", found {line!r:.60}'
      )
    clips[int(number.removeprefix("vid"))] = clip
  for where, x in raw.items(f"{split}_qa.json"):
    yield where, (clips, x)


def _msvd_qa_fields(record: Sequence[Any]) -> dict[str, Any]:
  clips, x = record
  return {
    "video": _video(clips[x["video_id"]]),
    "question": x["question"],
    "answer": x["answer"],
  }


def _activitynet(raw: Raw, file: str) -> Records:
  """One record a sentence, which is about a part of a video."""
  for where, (name, x) in raw.items(f"{file}.json"):
    pairs = x["timestamps"], x["sentences"]
    for (start, end), sentence in paired(f"{where}: its lists", *pairs):
      yield where, (name, start, end, sentence)


def _activitynet_fields(record: Sequence[Any]) -> dict[str, Any]:
  name, start, end, sentence = record
  return {
    "video": _video(f"{name}_{start:.2f}_{end:.2f}"),
    "captions": [sentence.strip()],
  }


def _activitynet_qa(raw: Raw, split: str) -> Records:
  answers = {
    x["question_id"]: x["answer"] for _, x in raw.items(f"{split}_a.json")
  }
  for where, x in raw.items(f"{split}_q.json"):
    yield where, (x, answers)


def _activitynet_qa_fields(record: Sequence[Any]) -> dict[str, Any]:
  x, answers = record
  return {
    "video": _video(f"v_{x['video_name']}", x["video_name"]),
    "question": x["question"],
    "answer": answers[x["question_id"]],
  }


def _vatex(x: Mapping[str, Any]) -> dict[str, Any]:
  return {"video": _video(x["videoID"]), "captions": x["enCap"]}


DATA_SETS = {
  "msrvtt_cap": DataSet(
    about=f"Captions of videos, 20 each. {_GONE}",
    homepage="https://www.microsoft.com/en-us/research/publication/"
    "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language",
    licence="for research",
    size="6 GB",
    files={
      "train_val_videodatainfo.json": "the publisher, train_val_annotation.zip",
      "test_videodatainfo.json": "the publisher, test_videodatainfo.json.zip",
      "TrainValVideo": "the publisher, train_val_videos.zip",
      "TestVideo": "the publisher, test_videos.zip",
    },
    splits={
      name: Split(functools.partial(_msrvtt, split=split), _captions, count)
      for name, split, count in [
        ("train", "train", 6_513),
        ("val", "validate", 497),
        ("test", "test", 2_990),
      ]
    },
  ),
  "msrvtt_qa": DataSet(
    about=f"Questions about the videos of MSR-VTT. {_GONE}",
    homepage=_VIDEO_QA,
    licence="for research",
    size="6 GB",
    files={
      **{f"{x}_qa.json": _VIDEO_QA for x in ("train", "val", "test")},
      "TrainValVideo": "as of msrvtt_cap",
      "TestVideo": "as of msrvtt_cap",
    },
    splits={
      split: Split(
        functools.partial(Raw.items, path=f"{split}_qa.json"), _msrvtt_qa, count
      )
      for split, count in {
        "train": 158_581,
        "val": 12_278,
        "test": 72_821,
      }.items()
    },
  ),
  "msvd_qa": DataSet(
    about=f"Questions about clips of YouTube. {_GONE}",
    homepage=_VIDEO_QA,
    licence="for research",
    size="2 GB",
    files={
      **{f"{x}_qa.json": _VIDEO_QA for x in ("train", "val", "test")},
      "youtube_mapping.txt": _VIDEO_QA,
      "YouTubeClips": "https://www.cs.utexas.edu/users/ml/clamp/"
      "videoDescription/YouTubeClips.tar",
    },
    splits={
      split: Split(
        functools.partial(_msvd_qa, split=split), _msvd_qa_fields, count
      )
      for split, count in {
        "train": 30_933,
        "val": 6_415,
        "test": 13_157,
      }.items()
    },
  ),
  "activitynet_cap": DataSet(
    about="Captions of parts of videos. Cut the parts first, named by video, "
    "first and last second, as v_QOlSCBRmfWY_0.83_19.86.mp4: ffmpeg -ss 0.83 "
    f"-to 19.86 -i v_QOlSCBRmfWY.mp4 v_QOlSCBRmfWY_0.83_19.86.mp4. {_GONE}",
    homepage="https://cs.stanford.edu/people/ranjaykrishna/densevid",
    licence="for research",
    size="200 GB",
    files={
      **dict.fromkeys(
        ("train.json", "val_1.json", "val_2.json"),
        "https://cs.stanford.edu/people/ranjaykrishna/densevid/captions.zip",
      ),
      "v_*.mp4": _ACTIVITYNET,
    },
    splits={
      name: Split(
        functools.partial(_activitynet, file=file), _activitynet_fields, count
      )
      for name, file, count in [
        ("train", "train", 37_421),
        ("val", "val_1", 17_505),
        ("test", "val_2", 17_031),
      ]
    },
  ),
  "activitynet_qa": DataSet(
    about=f"Questions about videos. {_GONE}",
    homepage="https://github.com/MILVLG/activitynet-qa",
    licence="Apache 2.0",
    size="200 GB",
    files={
      **{
        f"{split}_{kind}.json": "https://github.com/MILVLG/activitynet-qa"
        for split in ("train", "val", "test")
        for kind in "qa"
      },
      "v_*.mp4": _ACTIVITYNET,
    },
    splits={
      split: Split(
        functools.partial(_activitynet_qa, split=split),
        _activitynet_qa_fields,
        count,
      )
      for split, count in {
        "train": 32_000,
        "val": 18_000,
        "test": 8_000,
      }.items()
    },
  ),
  "vatex_cap": DataSet(
    about=f"Captions of clips of ten seconds, ten each in English. {_GONE}",
    homepage=f"{_VATEX}/download.html",
    licence="CC BY 4.0 (captions)",
    size="60 GB",
    files={
      **{
        f"vatex_{name}.json": f"{_VATEX}/data/vatex_{name}.json"
        for name in (
          *("training_v1.0", "validation_v1.0", "public_test_english_v1.1"),
        )
      },
      "Ptf_2VRj-V0_000122_000132.mp4, and the like": "YouTube, cut as named",
    },
    splits={
      name: Split(functools.partial(Raw.items, path=f"{file}.json"), _vatex, n)
      for name, file, n in [
        ("train", "vatex_training_v1.0", 25_991),
        ("val", "vatex_validation_v1.0", 3_000),
        ("test", "vatex_public_test_english_v1.1", 6_000),
      ]
    },
  ),
}
