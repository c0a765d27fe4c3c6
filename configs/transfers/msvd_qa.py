"""MSVD: questions about videos (24,670 to train on in April 2024).

Fields: video, question, answer.
"""

from ml_collections import ConfigDict

from configs.transfers.published import of_video


def get_config(argument: str | None = None) -> ConfigDict:
  return of_video(
    argument,
    data="data/msvd_qa",
    num_frames=8,
    stride=26,
    total_epochs=1.0,
    learning_rate=3e-6,
    weight_decay=3e-7,
  )
