"""VQAv2: questions about pictures.

Fields: image, question, answers (those of ten people), answer_type ("yes/no",
"number" or "other").

The published score is that of the test server, test-std, for predictions of
`test`. MMVP, POPE and Objaverse were evaluated with the model of this transfer.
"""

from ml_collections import ConfigDict

from configs.transfers.published import ANSWERS, at, make, parse, tfds


def get_config(argument: str | None = None) -> ConfigDict:
  arg = parse(argument)
  fields = {"question_text": "question"}
  held_out = "" if arg.final_split else "[:-10240]"
  return make(
    arg,
    data_set="vqav2",
    train=tfds("vqa", f"train+validation{held_out}", fields=fields),
    evals={
      "minival": tfds("vqa", "validation[-10240:]", fields=fields),
      # The two were made one in 2021.
      "test": tfds(
        "vqa", "test+test-dev", fields=fields, hidden=True, file="test"
      ),
    },
    **ANSWERS,
    metric="vqav2",
    total_epochs=10.0,
    weight_decay=at(arg.res, {224: 1e-6, 448: 0.0}),
  )
