"""Writes captions.json with pycocoevalcap and its PTBTokenizer, in Java.

Run by hand, never by the tests, in an environment of its own:

    apt install default-jre-headless
    pip install pycocoevalcap==1.2
    python -m tests.goldens.captions.make_captions

"tokens" holds captions and their words; "corpora" predictions, the references
of each and the scores of pycocoevalcap, of a corpus and of each caption.
"""

import contextlib
import io
import json
import pathlib
import random

from pycocoevalcap.bleu import bleu
from pycocoevalcap.cider import cider
from pycocoevalcap.rouge import rouge
from pycocoevalcap.tokenizer import ptbtokenizer

from tests.goldens.captions import adversarial_captions

PATH = pathlib.Path(__file__).parent / "captions.json"


def tokenize(captions: list[str]) -> list[str]:
  """The words of each caption.

  A line follows each, for PTBTokenizer looks ahead beyond the end of a line:
  whether "No." is an abbreviation would depend on the next image's caption.
  """
  lines = {
    i: [{"caption": caption}, {"caption": "x"}]
    for i, caption in enumerate(captions)
  }
  tokenized = ptbtokenizer.PTBTokenizer().tokenize(lines)
  assert all(words[1] == "x" for words in tokenized.values())
  return [tokenized[i][0] for i in lines]


def score(
  predictions: list[str], references: list[list[str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
  """Scores of tokenized captions: of the corpus, and of each of them."""
  res = {i: [text] for i, text in enumerate(predictions)}
  gts = dict(enumerate(references))
  scores, each = {}, {}
  with contextlib.redirect_stdout(io.StringIO()):
    for name, scorer in (("cider", cider.Cider()), ("rouge", rouge.Rouge())):
      value, values = scorer.compute_score(gts, res)
      scores[name], each[name] = float(value), values.tolist()
    values, _ = bleu.Bleu(4).compute_score(gts, res)
  scores |= {f"bleu-{n}": value for n, value in enumerate(values, start=1)}
  return scores, each


def corpus(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
  """Predictions near to their references, far from them, empty and repeated."""
  rng = random.Random(seed)
  captions = adversarial_captions.captions(seed, 2 * images)
  near = adversarial_captions.near
  predictions, references = [], []
  for caption, other in zip(captions[::2], captions[1::2], strict=True):
    theirs = [near(caption, rng) for _ in range(rng.randint(1, 5))]
    references.append(theirs)
    guesses = [caption, theirs[0], near(caption, rng), other, "", "a a a a"]
    guesses += [f"{caption} {other}", f"{caption} {caption}"]
    predictions.append(rng.choice(guesses))
  return predictions, references


def main():
  captions = [
    *adversarial_captions.PIECES["fragments"],
    *adversarial_captions.captions(73, 400),
  ]
  tokens = list(zip(captions, tokenize(captions), strict=True))
  corpora = []
  for seed, images in ((79, 1), (83, 2), (89, 97)):
    predictions, references = corpus(seed, images)
    scores, each = score(
      tokenize(predictions), [tokenize(texts) for texts in references]
    )
    corpora.append(
      {
        "predictions": predictions,
        "references": references,
        "scores": scores,
        "each": each,
      }
    )
  golden = {"tokens": tokens, "corpora": corpora}
  PATH.write_text(json.dumps(golden, indent=0) + "\n")


if __name__ == "__main__":
  main()
