"""The model card of a Hugging Face folder, with how to load it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from paligemma.checkpoints import model_card

_PALIGEMMA = """\
With transformers:

```python
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

folder = "."  # or the name of this model on the Hub
processor = AutoProcessor.from_pretrained(folder)
model = PaliGemmaForConditionalGeneration.from_pretrained(folder)
image = Image.open("photo.jpg").convert("RGB")
inputs = processor(text="<image>caption en", images=image, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
new = ids[0, inputs["input_ids"].shape[1] :]
print(processor.decode(new, skip_special_tokens=True))
```

With paligemma:

```python
import paligemma

model, params = paligemma.load(".")
tok = paligemma.Tokenizer(".")
print(paligemma.generate(model, params, tok, "photo.jpg", "caption en")[0])
```"""
_GEMMA = """\
With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or the name of this model on the Hub
tok = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
PROMPT
ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
new = ids[0, inputs["input_ids"].shape[1] :]
print(tok.decode(new, skip_special_tokens=True))
```

With paligemma:

```python
import paligemma

model, params = paligemma.load(".")
tok = paligemma.Tokenizer(".", plain=True)
print(paligemma.generate(model, params, tok, None, OUR_PROMPT)[0])
```"""
# Has a chat template -> what is asked with transformers, and here.
_PROMPTS = {
  False: (
    'inputs = tok("The capital of France is", return_tensors="pt")',
    '"The capital of France is"',
  ),
  True: (
    'turns = [{"role": "user", "content": "Hello"}]\n'
    "inputs = tok.apply_chat_template(\n"
    "  turns,\n"
    "  add_generation_prompt=True,\n"
    "  return_dict=True,\n"
    '  return_tensors="pt",\n'
    ")",
    '"<start_of_turn>user\\nHello<end_of_turn>\\n<start_of_turn>model\\n"',
  ),
}
_SIGLIP = """\
With transformers:

```python
from PIL import Image
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model=".")
print(classify(Image.open("photo.jpg"), candidate_labels=["cat", "dog"]))
```

With paligemma:

```python
import paligemma

model, params = paligemma.load(".")
tok = paligemma.SiglipTokenizer(".")
print(paligemma.classify(model, params, tok, "photo.jpg", ["cat", "dog"]))
```"""
_QUANTIZED = """\
The matrices of the decoder are in nf4, which transformers reads with
bitsandbytes (`pip install bitsandbytes accelerate`).

"""
_NO_TOKENIZER = "This folder holds no tokenizer: add that of the base.\n\n"


def write(
  folder: pathlib.Path,
  name: str,
  fields: Mapping[str, Any],
  num_parameters: int,
  about: model_card.About | None,
) -> None:
  """Writes README.md, and NOTICE of a Gemma, into a folder.

  Args:
    folder: With all other small files, which tell how it is used.
    name, fields, num_parameters, about: As in model_card.documents.
  """
  if fields.get("llm") is None:
    use = _SIGLIP
  elif fields.get("img") is not None:
    use = _PALIGEMMA
  else:
    theirs, ours = _PROMPTS[(folder / "chat_template.jinja").exists()]
    use = _GEMMA.replace("OUR_PROMPT", ours).replace("PROMPT", theirs)
  if not (folder / "tokenizer_config.json").exists():
    use = _NO_TOKENIZER + use
  if "quantization_config" in (folder / "config.json").read_text():
    use = _QUANTIZED + use.partition("\n\nWith paligemma:")[0]
  texts = model_card.documents(
    name,
    fields,
    num_parameters,
    about,
    library="transformers",
    use=use
    if (folder / "tokenizer_config.json").exists()
    else _NO_TOKENIZER + use,
  )
  for file, text in texts.items():
    (folder / file).write_text(text, encoding="utf-8")
