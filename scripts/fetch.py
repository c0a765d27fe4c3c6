"""Downloads a published checkpoint and its tokenizer, and checks both.

    python -m scripts.fetch paligemma2_3b_pt_224

Weights come from Kaggle or Hugging Face through kagglehub or huggingface_hub,
the extra "hub", and stay in the cache of that client, where the same name finds
them again: init=paligemma2_3b_pt_224, paligemma.load("paligemma2_3b_pt_224").
Both sites ask for an account that has accepted the licence of Gemma, and for
its key: kagglehub.login() or `hf auth login`. SigLIP is under Apache 2.0 and
needs neither. What the folder that PALIGEMMA_CHECKPOINTS names has is checked
and not downloaded.
"""

import hashlib
import math
import urllib.request
import zipfile

from etils import epath

from paligemma import disk, init, variants
from paligemma.checkpoints import fit, formats, infer, presets
from paligemma.checkpoints.checkpoint import Checkpoint
from paligemma.models import gemma, paligemma, siglip
from trainers import command_line, progress


def fetch(name: str, tokenizer: epath.PathLike) -> tuple[str, int]:
  """Downloads what is not here yet, and checks all of it.

  Args:
    name: of a preset, see paligemma/checkpoints/presets.py.
    tokenizer: file to write that of PaliGemma to, unless it is there; a Gemma
      alone and a SigLIP have their tokenizer in their folder.

  Returns:
    The path of the weights, and how many parameters they have.

  Raises:
    ValueError: an unknown name; something cannot be had, which says what is
      missing; a file is damaged, or of another model.
  """
  preset = presets.get(name)
  if preset.variant in variants.PALIGEMMA:
    fetch_tokenizer(tokenizer)
  with progress.stage(f"looking for {name}"):
    path = presets.find(name)
  with progress.stage(f"checking {path}"):
    checkpoint = formats.open(path)
    check_model(checkpoint, preset)
    check_archive(path)
  count = sum(math.prod(leaf.shape) for leaf in checkpoint.leaves.values())
  return path, count


def check_model(checkpoint: Checkpoint, preset: presets.Preset) -> None:
  """Raises ValueError unless a checkpoint has all parameters of a preset."""
  sizes = infer.sizes(checkpoint.leaves)
  # Hugging Face adds rows to the embedding table.
  llm = {"vocab_size": sizes.get("llm", {}).get("vocab_size")}
  if preset.variant in variants.SIGLIP:
    model = siglip.make(preset.variant)
  elif preset.res is None:
    model = paligemma.Model(img=None, llm=gemma.make(preset.variant, **llm))
  else:
    model = paligemma.make(preset.variant, llm=llm)
  fit.fit(checkpoint, init.shapes(model, preset.res))
  res = sizes.get("img", {}).get("res")
  if res and preset.variant in variants.SIGLIP:
    patch = model.img.patch_size
    res = variants.siglip_side(patch, res // patch)
  if res != preset.res:  # fit resamples position embeddings
    raise ValueError(
      f"{checkpoint.path}: is for images of {res} pixels, expected {preset.res}"
    )


def check_archive(path: str) -> None:
  """Compares every array of an npz with the checksum that is stored with it.

  The clients of both hubs check what they download against the hub; this also
  finds what was damaged later.
  """
  if not path.endswith(".npz"):
    return
  with zipfile.ZipFile(path) as archive:
    if damaged := archive.testzip():
      raise ValueError(
        f"{path}: {damaged} is damaged; delete the file and fetch it again"
      )


def fetch_tokenizer(path: epath.PathLike) -> None:
  """Writes the tokenizer of PaliGemma to a file, or checks the one there.

  Raises:
    ValueError: it cannot be downloaded, or the file is another one.
  """
  path = disk.path(path)
  if path.exists():
    _check_tokenizer(path, path.read_bytes())
    return
  url, size = presets.TOKENIZER_URL, presets.TOKENIZER_BYTES
  try:
    with urllib.request.urlopen(url, timeout=60) as response:
      data = response.read(size + 1)
  except OSError as error:
    raise ValueError(
      f"{url}: {getattr(error, 'reason', error)}; it is also tokenizer.model "
      f"at https://huggingface.co/google/paligemma-3b-pt-224, save it as {path}"
    ) from None
  _check_tokenizer(url, data)
  with disk.file(path) as temporary:
    temporary.write_bytes(data)


def _check_tokenizer(where, data):
  digest = hashlib.sha256(data).hexdigest()
  if digest != presets.TOKENIZER_SHA256:
    raise ValueError(
      f"{where}: {len(data):,} bytes with sha256 {digest}, expected the "
      f"tokenizer of PaliGemma, {presets.TOKENIZER_BYTES:,} bytes with sha256 "
      f"{presets.TOKENIZER_SHA256}"
    )


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("name", help="such as paligemma2_3b_pt_224")
  parser.add_argument(
    "--tokenizer",
    metavar="FILE",
    default="paligemma_tokenizer.model",
    help="where to save the tokenizer (default: %(default)s)",
  )
  args = parser.parse_args()
  path, count = fetch(args.name, args.tokenizer)
  print(f"weights: {path}, {count:,} parameters")
  if presets.get(args.name).variant in variants.PALIGEMMA:
    print(f"tokenizer: {args.tokenizer}")
    print(f"config: init={args.name},tokenizer={args.tokenizer}")


if __name__ == "__main__":
  command_line.run(main)
