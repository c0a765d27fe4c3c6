"""MSR-VTT: captions of videos (4,663 to train on in April 2024).

Fields: video, captions (a list).
"""

from ml_collections import ConfigDict

from configs.transfers.published import VIDEO_CAPTIONS, of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/msrvtt_cap",
    num_frames=16,
    stride=9,
    text_len=32,
    **VIDEO_CAPTIONS,
    tune="decoder",
    total_epochs=20.0,
  )
