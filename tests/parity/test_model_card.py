"""What a model card says to do with transformers works, chat included."""

import contextlib
import io
import re

import numpy as np
import pytest
from PIL import Image

import paligemma
from paligemma.data import chat
from scripts import convert

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = "paligemma/assets/tiny.npz"
TOKENIZER = "paligemma/assets/tiny_tokenizer.model"
CONVERSATION = [
  {"role": "user", "content": " what digit is this? "},
  {"role": "assistant", "content": "seven"},
  {"role": "user", "content": "sure?"},
  {"role": "assistant", "content": "yes"},
]


def run_card(folder, monkeypatch):
  """What each block of Python in README.md prints, run in the folder."""
  monkeypatch.chdir(folder)
  printed = []
  text = (folder / "README.md").read_text()
  for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
    with contextlib.redirect_stdout(io.StringIO()) as out:
      exec(compile(code, "README.md", "exec"), {})
    printed.append(out.getvalue().strip())
  return printed


# NumPy 2 on how the processor reads tensors of PyTorch.
@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning")
def test_paligemma(tmp_path, monkeypatch):
  folder = tmp_path / "hf"
  convert.convert(
    TINY, folder, format="huggingface", tokenizer=TOKENIZER, dtype="float32"
  )
  pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
  Image.fromarray(pixels).save(folder / "photo.jpg")
  theirs, ours = run_card(folder, monkeypatch)
  assert theirs == ours != ""


@pytest.fixture
def gemma(tmp_path):
  """A Gemma that is written with the chat template."""
  sizes = {"width": 16, "depth": 2, "mlp_dim": 22, "head_dim": 10}
  model, params = paligemma.load(
    "gemma_instruct_2b_en",
    load_weights=False,
    llm={**sizes, "num_heads": 2, "vocab_size": 1792},
  )
  model = model.clone(metadata={"chat_template": chat.TEMPLATE})
  folder = tmp_path / "gemma"
  paligemma.save(
    folder, model, params, format="huggingface", tokenizer=TOKENIZER
  )
  return folder


def test_gemma(gemma, monkeypatch):
  theirs, _ = run_card(gemma, monkeypatch)
  assert theirs


def test_the_chat_template_is_render(gemma):
  tok = transformers.AutoTokenizer.from_pretrained(gemma)
  text = tok.apply_chat_template(CONVERSATION, tokenize=False)
  expected, _ = chat.render(CONVERSATION)
  assert text == f"<bos>{expected}\n"
  begun = tok.apply_chat_template(
    CONVERSATION[:1], tokenize=False, add_generation_prompt=True
  )
  assert begun == (
    "<bos><start_of_turn>user\nwhat digit is this?<end_of_turn>\n"
    "<start_of_turn>model\n"
  )
  with pytest.raises(Exception, match="turns alternate, first the user, then"):
    tok.apply_chat_template(CONVERSATION[1:], tokenize=False)
