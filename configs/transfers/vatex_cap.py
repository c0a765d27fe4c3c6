"""VATEX: captions of videos (22,315 to train on in April 2024).

Fields: video, captions (a list).
"""

from ml_collections import ConfigDict

from configs.transfers.published import VIDEO_CAPTIONS, of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/vatex_cap",
    num_frames=16,
    stride=7,
    **VIDEO_CAPTIONS,
    total_epochs=10.0,
    learning_rate=3e-6,
    weight_decay=3e-7,
  )
