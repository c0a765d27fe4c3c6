"""Texts with control tokens, and the ids they should get, written plainly."""

BOX = "<loc0001><loc0022><loc0333><loc1023>"


def plain_ids(tok, prompt, answer):
  """What the ids should be, written without a regular expression."""
  for _ in range(2):
    for token in ("<image>", "<bos>"):
      if prompt.startswith(token):
        prompt = prompt[len(token) :].lstrip()
  while prompt.endswith("\n"):
    prompt = prompt[:-1]
  while answer.rstrip().endswith("<eos>"):
    answer = answer.rstrip()[: -len("<eos>")].rstrip()
  ids = [2, *tok.encode(prompt), *tok.encode("\n")]
  return ids, [*tok.encode(answer), 1]


def random_texts(rng):
  """A prompt and an answer of all that occurs."""
  words = ["a cat", "ein Käse", "🐈‍⬛", "\n", " ", "x < y", "<b>", "猫", BOX]
  body = "".join(rng.choices(words, k=rng.randint(1, 6)))
  answer = "".join(rng.choices([*words, " ; "], k=rng.randint(1, 6)))
  start = rng.choice(["", "<image>", "<image> ", "<image><bos>", "<bos>"])
  body = body.lstrip() if start else body
  stop = rng.choice(["", "\n", "\n\n"])
  return start + body + stop, answer + rng.choice(["", "<eos>", " <eos>\n"])
