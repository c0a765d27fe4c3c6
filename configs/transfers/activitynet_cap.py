"""ActivityNet: captions of parts of videos (30,545 to train on in April 2024).

Fields: video, captions (a list).
"""

from ml_collections import ConfigDict

from configs.transfers.published import VIDEO_CAPTIONS, of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/activitynet_cap",
    num_frames=16,
    stride=30,
    **VIDEO_CAPTIONS,
    tune="decoder",
    total_epochs=1.0,
    weight_decay=1e-6,
  )
