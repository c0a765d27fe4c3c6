"""Trains the small tokenizer that ships for the demo and the tests.

    python -m scripts.assets.train_tiny_tokenizer \
      paligemma/assets/tiny_tokenizer.model

Its pieces are laid out as in PaliGemma's own file, in small: pad, eos, bos,
unk, "\\n", the 256 bytes, text, then the 1024 locations, last the 128 segments.
"""

import io
import re

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from paligemma import disk
from scripts.assets import draw_pictures
from trainers import command_line

NUM_TEXT = 640
NUM_LOC, NUM_SEG = 1024, 128
NUM_EXAMPLES = 1000

# Written for this file: everyday words, and those of the questions that people
# ask about pictures.
ENGLISH = """
The quick brown fox jumps over the lazy dog. Two old friends walk along the
river in the morning, and one of them carries a camera. What can you see in this
picture? There is a small house with a green door, a tall tree beside it, and a
cat that sleeps on the wall. How many people are sitting at the table? Which of
the two bottles is the larger one? Please describe the image in one sentence.
What number is written here? Someone wrote a number on a piece of paper with a
black pen. Where is the red car, and what is it next to? Is the man wearing a
hat? The woman on the left is holding a cup of coffee, while the child on the
right looks at a book. What time does the clock show? What is the name of the
shop, and what does the sign over the door say? Read the text on the label.

It was raining when we left the station, so we took a bus into the city. The
streets were full of lights, and every window showed something different: bread
and cakes, shoes and coats, toys, flowers, a bicycle without wheels. My sister
said that she had never been there before, but she knew the way to the market
because our mother used to talk about it. We bought apples, cheese and some
bread, then we found a quiet place near the water where the wind could not reach
us. After lunch the sky turned blue again; birds came down from the roofs to eat
what we had left. I would like to go back there next year, perhaps in spring,
when the days are longer and the gardens are open.

A good answer is short, true and easy to check. If you do not know, say so. Draw
a line under the first word, a box around the second, and a cross through the
third. Count the objects from top to bottom and from left to right. Give the
total, the average, the highest and the lowest value in the chart. Does the
second column hold more than the first? Compare both pictures: what has changed
between them? Answer with yes or no, a single word, or a number.
"""
LETTERS = (
  "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789"
  """ .,:;!?'"()[]{}<>+-*/=%&#@$^_|~`\\"""
)


def _corpus():
  """Returns the sentences to train on: ours, then those of drawn pictures.

  Locations are left out, since these become pieces of their own.
  """
  sentences = [*LETTERS.split(), *re.split(r"(?<=[.?:;])\s+", ENGLISH.strip())]
  sentences = [" ".join(sentence.split()) for sentence in sentences]
  for index in range(NUM_EXAMPLES):
    _, *texts = draw_pictures.make_example(0, "train", index, res=56)
    sentences.extend(re.sub(r"<loc\d+>", "", text) for text in texts)
  return sentences


def _train_text_pieces(sentences, vocab_size):
  """Trains byte-pair pieces with the settings of Gemma's own tokenizer.

  pad 0, eos 1, bos 2, unk 3, "\\n" 4; no prefix space, no normalisation, digits
  one by one, bytes for what no piece covers.
  """
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=model,
    model_type="bpe",
    vocab_size=vocab_size,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    eos_piece="<eos>",
    bos_piece="<bos>",
    user_defined_symbols=["\n"],
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    character_coverage=1.0,
    num_threads=1,
    minloglevel=2,
  )
  return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def _append_pieces(model, pieces):
  """Appends pieces that are matched whole, before any text."""
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
  for piece in pieces:
    model.pieces.add(piece=piece, score=0.0, type=kind)
  model.trainer_spec.vocab_size = len(model.pieces)


def make_tokenizer() -> bytes:
  """Returns the serialized tokenizer of 640 + 1024 + 128 pieces."""
  model = _train_text_pieces(_corpus(), NUM_TEXT)
  _append_pieces(model, [f"<loc{i:04d}>" for i in range(NUM_LOC)])
  _append_pieces(model, [f"<seg{i:03d}>" for i in range(NUM_SEG)])
  return model.SerializeToString(deterministic=True)


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("out", help="the .model file to write")
  out = parser.parse_args().out
  content = make_tokenizer()
  disk.write(out, content)
  total = NUM_TEXT + NUM_LOC + NUM_SEG
  print(f"tokenizer: {out} written, {total} pieces, {len(content)} bytes")


if __name__ == "__main__":
  command_line.run(main)
