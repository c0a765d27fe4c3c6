"""MSR-VTT: questions about videos (114,080 to train on in April 2024).

Fields: video, question, answer.
"""

from ml_collections import ConfigDict

from configs.transfers.published import of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/msrvtt_qa",
    num_frames=16,
    stride=9,
    tune="decoder",
    total_epochs=1.0,
  )
