"""ActivityNet: questions about videos (27,610 to train on in April 2024).

Fields: video, question, answer.
"""

from ml_collections import ConfigDict

from configs.transfers.published import of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/activitynet_qa",
    num_frames=16,
    stride=70,
    total_epochs=1.0,
    weight_decay=1e-6,
  )
