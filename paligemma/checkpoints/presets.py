"""Published checkpoints by name: where they lie on this machine, or on a hub.

Names are ours, "paligemma2_3b_pt_224": that of the model, "pt" (to be
fine-tuned), "mix" (fine-tuned on a mixture of tasks) or "ft_docci", and pixels.
A Gemma, for text alone, has the name that keras-hub gives it, a SigLIP that of
its file in big_vision ("siglip2_b16_224"). The names that they have on a hub,
or in keras-hub, do as well (ALIASES).

Sources. Kaggle, JAX: big_vision's configs/proj/paligemma/README.md and
finetune_paligemma.ipynb (files .npz, .bf16.npz and .f16.npz of PaliGemma,
.b16.npz of PaliGemma 2), and PRESET_MAP of keras-hub's
tools/checkpoint_conversion/convert_pali_gemma2_checkpoints.py. Kaggle, Keras:
models/pali_gemma/pali_gemma_presets.py and models/gemma/gemma_presets.py of
keras-hub 0.32. Hugging Face: the announcements of PaliGemma 2 and of its mix
models (huggingface/blog, paligemma2.md and paligemma2mix.md), and for PaliGemma
and Gemma lists of its models in public code. SigLIP: big_vision's
SigLIP_demo.ipynb and README_siglip2.md. Whatever is missing here was named
by none of them, such as JAX files of PaliGemma 2 "pt" on Hugging Face.
"""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from etils import epath

from paligemma import registry, variants

DIRECTORY_VARIABLE = "PALIGEMMA_CHECKPOINTS"

# Of PaliGemma 1 and 2: the file that big_vision's notebook copies, and
# tokenizer.model of google/paligemma-3b-pt-224 on Hugging Face.
TOKENIZER_URL = (
  "https://storage.googleapis.com/big_vision/paligemma_tokenizer.model"
)
TOKENIZER_BYTES = 4_264_023
TOKENIZER_SHA256 = (
  "8986bb4f423f07f8c7f70d0dbe3526fb2316056c17bae71b1ea975e77a168fc6"
)

# PaliGemma was published in float32, and in bfloat16 and float16 made of it;
# PaliGemma 2 in bfloat16.
_ENDINGS = (".npz", ".bf16.npz", ".b16.npz", ".f16.npz")
_HALF_FIRST = (".f16.npz", ".b16.npz", ".bf16.npz", ".npz")
# What a hub means by the status of HTTP.
_REFUSED = {
  401: "no valid key of an account, or its licence is not accepted",
  403: "the licence is not accepted by the account, or its key may not read it",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """A place on a hub.

  Attributes:
    hub: "Kaggle", "Hugging Face", or "big_vision" for its public bucket, from
      which nothing is fetched.
    handle: Of the model there.
    files: What to fetch: a file on Kaggle, patterns on Hugging Face. Default:
      all.
    half: The same in 16 bits, where `files` has 32. Default: as `files`.
  """

  hub: str
  handle: str
  files: tuple[str, ...] = ()
  half: tuple[str, ...] = ()

  @property
  def page(self) -> str:
    """Where a person reads about it and, if need be, accepts the licence."""
    if self.hub == "Kaggle":
      owner, model = self.handle.split("/")[:2]
      return f"https://www.kaggle.com/models/{owner}/{model}"
    if self.hub == "big_vision":
      return f"https://storage.googleapis.com/big_vision/{self.handle}.npz"
    return f"https://huggingface.co/{self.handle}"


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published checkpoint.

  Attributes:
    variant: Key of variants.PALIGEMMA, of variants.SIGLIP, or of
      variants.GEMMA: a decoder alone.
    res: Pixels of a side; None of a decoder and of NaFlex.
    vocab_size: Rows of the embedding table.
    sources: Where it is published, the best first.
  """

  variant: str
  res: int | None
  vocab_size: int
  sources: tuple[Source, ...]

  @property
  def is_open(self) -> bool:
    """Whether it is to be had without an account: SigLIP, under Apache 2.0."""
    return self.variant in variants.SIGLIP

  @property
  def hub_name(self) -> str | None:
    """Its name on Hugging Face, for transformers, if it has one."""
    handles = [x.handle for x in self.sources if x.hub == "Hugging Face"]
    return next((x for x in handles if not x.endswith("-jax")), None)

  @property
  def stems(self) -> tuple[str, ...]:
    """Names that files and folders of it have, without the ending."""
    handles = [source.handle.split("/") for source in self.sources]
    # On Kaggle: owner, model, framework, name, version.
    names = [h[3] if len(h) > 3 else h[-1] for h in handles]
    return tuple(dict.fromkeys(names))


# Name at google, and at keras on Kaggle, both before the resolution; and the
# version there of each resolution.
_PALIGEMMA = {
  "paligemma-3b-pt": ("pali_gemma_3b", {224: 4, 448: 4, 896: 4}),
  "paligemma-3b-mix": ("pali_gemma_3b_mix", {224: 4, 448: 4}),
  "paligemma2-3b-pt": ("pali_gemma2_pt_3b", {224: 2, 448: 2, 896: 2}),
  "paligemma2-10b-pt": ("pali_gemma2_pt_10b", {224: 3, 448: 3, 896: 3}),
  "paligemma2-28b-pt": ("pali_gemma2_pt_28b", {224: 4, 448: 3, 896: 3}),
  "paligemma2-3b-mix": ("pali_gemma2_mix_3b", {224: 2, 448: 2}),
  "paligemma2-10b-mix": ("pali_gemma2_mix_10b", {224: 3, 448: 3}),
  "paligemma2-28b-mix": ("pali_gemma2_28b_mix", {224: 3, 448: 3}),
  "paligemma2-3b-ft-docci": ("pali_gemma_2_ft_docci_3b", {448: 2}),
  "paligemma2-10b-ft-docci": ("pali_gemma2_ft_docci_10b", {448: 3}),
}

# Variant; model, name and version on Kaggle; name at google on Hugging Face.
_GEMMA = """
gemma_2b   keras/gemma gemma_2b_en 3 gemma-2b
gemma_2b   keras/gemma gemma_instruct_2b_en 3 gemma-2b-it
gemma_2b   keras/gemma gemma_1.1_instruct_2b_en 4 gemma-1.1-2b-it
gemma_7b   keras/gemma gemma_7b_en 4 gemma-7b
gemma_7b   keras/gemma gemma_instruct_7b_en 4 gemma-7b-it
gemma_7b   keras/gemma gemma_1.1_instruct_7b_en 5 gemma-1.1-7b-it
gemma_2b   keras/codegemma code_gemma_2b_en 2 codegemma-2b
gemma_2b   keras/codegemma code_gemma_1.1_2b_en 2 codegemma-1.1-2b
gemma_7b   keras/codegemma code_gemma_7b_en 3 codegemma-7b
gemma_7b   keras/codegemma code_gemma_instruct_7b_en 3 codegemma-7b-it
gemma_7b   keras/codegemma code_gemma_1.1_instruct_7b_en 3 codegemma-1.1-7b-it
gemma2_2b  keras/gemma2 gemma2_2b_en 2 gemma-2-2b
gemma2_2b  keras/gemma2 gemma2_instruct_2b_en 2 gemma-2-2b-it
gemma2_9b  keras/gemma2 gemma2_9b_en 4 gemma-2-9b
gemma2_9b  keras/gemma2 gemma2_instruct_9b_en 4 gemma-2-9b-it
gemma2_27b keras/gemma2 gemma2_27b_en 3 gemma-2-27b
gemma2_27b keras/gemma2 gemma2_instruct_27b_en 3 gemma-2-27b-it
gemma2_2b  google/shieldgemma shieldgemma_2b_en 2 shieldgemma-2b
gemma2_9b  google/shieldgemma shieldgemma_9b_en 2 shieldgemma-9b
gemma2_27b google/shieldgemma shieldgemma_27b_en 2 shieldgemma-27b
gemma2_2b  keras/cell2sentence c2s_scale_gemma_2_2b_en 1
gemma2_27b keras/cell2sentence c2s_scale_gemma_2_27b_en 1
vault_gemma_1b keras/vaultgemma vault_gemma_1b_en 2
"""


# Of the first SigLIP: name, file in the public bucket, what ends its name on
# Hugging Face.
_SIGLIP = """
siglip_b16_224           webli_en_b16_224_63724782
siglip_b16_256           webli_en_b16_256_60500360
siglip_b16_384           webli_en_b16_384_68578854
siglip_b16_512           webli_en_b16_512_68580893
siglip_l16_256           webli_en_l16_256_60552751
siglip_l16_384           webli_en_l16_384_63634585
siglip_so400m14_224      webli_en_so400m_224_57633886
siglip_so400m14_384      webli_en_so400m_384_58765454
siglip_i18n_b16_256      webli_i18n_b16_256_66117334       -multilingual
siglip_i18n_so400m16_256 webli_i18n_so400m_16_256_78061115 -i18n
"""
# Sizes of both, as Hugging Face spells them.
_SIGLIP_SIZES = {
  "b16": "base-patch16",
  "b32": "base-patch32",
  "l16": "large-patch16",
  "so400m14": "so400m-patch14",
  "so400m16": "so400m-patch16",
  "g-opt16": "giant-opt-patch16",
}


def _presets() -> Iterator[tuple[str, Preset]]:
  for stem, (keras, versions) in _PALIGEMMA.items():
    family, size, kind, *_ = stem.split("-")
    is_second = family == "paligemma2"
    model = "paligemma-2" if is_second else "paligemma"
    for res, version in versions.items():
      name = f"{stem}-{res}"
      file = f"{name}.b16.npz" if is_second else f"{name}.npz"
      half = () if is_second else (f"{name}.f16.npz",)
      handle = f"google/{model}/jax/{name}/1"
      sources = [Source("Kaggle", handle, (file,), half)]
      if kind == "mix" or not is_second:
        sources.append(Source("Hugging Face", f"google/{name}-jax", ("*.npz",)))
      handle = f"keras/{family}/keras/{keras}_{res}/{version}"
      sources += [_transformers(name), Source("Kaggle", handle)]
      yield (
        name.replace("-", "_"),
        Preset(f"{family}_{size}", res, variants.VOCAB_SIZE, tuple(sources)),
      )
  for line in _GEMMA.strip().splitlines():
    variant, model, name, version, *hugging_face = line.split()
    sources = [Source("Kaggle", f"{model}/keras/{name}/{version}")]
    sources += map(_transformers, hugging_face)
    yield name, Preset(variant, None, variants.GEMMA_VOCAB_SIZE, tuple(sources))
  files = {line.split()[0]: line for line in _SIGLIP.strip().splitlines()}
  for name, variant in variants.SIGLIP.items():
    if name in files or name.startswith("siglip2_"):
      sources = _siglip_sources(name, *files.get(name, name).split()[1:])
      yield name, Preset(name, variant.res, variant.vocab_size, sources)


def _siglip_sources(name, file=None, end="") -> tuple[Source, ...]:
  *family, size, res = name.split("_")
  handle = f"{family[0]}-{_SIGLIP_SIZES[size]}-{res}{end}"
  if file is not None:
    return _transformers(handle), Source("big_vision", f"siglip/{file}")
  jax = Source("Hugging Face", f"google/{handle}-jax", ("*.npz",))
  return _transformers(handle), jax, Source("big_vision", f"siglip2/{name}")


def _transformers(name) -> Source:
  files = ("*.json", "*.safetensors", "*.model")
  return Source("Hugging Face", f"google/{name}", files)


PRESETS: Mapping[str, Preset] = MappingProxyType(dict(_presets()))

# Name on a hub, or in keras-hub -> name here.
ALIASES: Mapping[str, str] = MappingProxyType(
  {
    **{stem: n for n, preset in PRESETS.items() for stem in preset.stems},
    # Kaggle has another name for them than keras-hub.
    "pali_gemma2_mix_28b_224": "paligemma2_28b_mix_224",
    "pali_gemma2_mix_28b_448": "paligemma2_28b_mix_448",
  }
)


def is_name(name: epath.PathLike) -> bool:
  """Tells whether this is the name of a preset, and no path."""
  return str(name) in PRESETS or str(name) in ALIASES


def get(name: str) -> Preset:
  """Returns the preset of a name in PRESETS or ALIASES.

  Raises:
    ValueError: Unknown; lists the known ones and the nearest.
  """
  name = str(name)
  return registry.lookup(PRESETS, ALIASES.get(name, name), "preset")


def named_by(path: epath.PathLike) -> str | None:
  """Returns the preset that a file or folder has the name of, if any.

  Args:
    path: As "weights/paligemma2-3b-pt-224.b16.npz", or the name itself.
  """
  name = os.path.basename(str(path).partition(".npz:")[0])
  for ending in sorted(_ENDINGS, key=len, reverse=True):
    name = name.removesuffix(ending)
  return ALIASES.get(name, name) if is_name(name) else None


def find(
  name: str, directory: epath.PathLike | None = None, half: bool = False
) -> str:
  """Returns the path of a checkpoint: from a directory, else from a hub.

  The hubs are those whose client is installed: kagglehub or huggingface_hub.

  In the directory, and in every folder in it, this is looked for, where <name>
  is that of the preset or its name on a hub:

      <name>.npz, <name>.bf16.npz, <name>.b16.npz, <name>.f16.npz
      <name>/     such a file in it, or a checkpoint of any other format

  Args:
    name: As in `get`.
    directory: Where to look first. Default: what the environment variable
      PALIGEMMA_CHECKPOINTS names, if it is set.
    half: Whether 16 bits are enough: those of half the size come first.

  Raises:
    ValueError: Unknown name, no such directory; or it is neither there nor to
      be had: says what was looked for and where to get it.
  """
  preset = get(name)
  ours = ALIASES.get(str(name), str(name))
  stems = tuple(dict.fromkeys((ours, str(name), *preset.stems)))
  directory = directory or os.environ.get(DIRECTORY_VARIABLE)
  if directory:
    directory = pathlib.Path(directory)
    if not directory.is_dir():
      raise ValueError(f"{directory}: no such directory of checkpoints")
    endings = _HALF_FIRST if half else _ENDINGS
    if found := _look(directory, stems, endings):
      return str(found)
  reasons = []
  for source in preset.sources:
    if half and source.half:
      source = dataclasses.replace(source, files=source.half)
    try:
      return _fetch(source, stems, {} if preset.is_open else _REFUSED)
    except ValueError as e:
      reasons.append(f"; {source.hub}, {source.handle}: {e}")
  where = f"{directory} and the folders in it"
  if not directory:
    where = f"no directory ({DIRECTORY_VARIABLE} is not set)"
  pages = " or ".join(dict.fromkeys(source.page for source in preset.sources))
  how = (
    "sign in, accept the licence there, and put it into the directory as "
    f"{ours}.npz or {ours}/; or install kagglehub or huggingface_hub and call "
    "kagglehub.login() or huggingface_hub.login()"
  )
  if preset.is_open:
    how = (
      "it is under Apache 2.0 and needs no account; put it into the directory "
      f"as {ours}.npz or {ours}/; or install huggingface_hub"
    )
  raise ValueError(
    f'preset "{name}": looked in {where} for {", ".join(stems)}, a folder or '
    f"with one of the endings {' '.join(_ENDINGS)}{''.join(reasons)}. Get it "
    f"at {pages}: {how}"
  )


def _look(directory: pathlib.Path, stems, endings) -> pathlib.Path | None:
  folders = sorted(path for path in directory.iterdir() if path.is_dir())
  for parent in (directory, *folders):
    for stem in stems:
      found = _npz(parent, [stem], endings)
      found = found or _look_inside(parent / stem, stems, endings)
      if found:
        return found
  return None


def _look_inside(
  folder: pathlib.Path, stems, endings=_ENDINGS
) -> pathlib.Path | None:
  """The npz of a known name in a folder, or else the folder if it has files."""
  if not folder.is_dir():
    return None
  if found := _npz(folder, stems, endings):
    return found
  files = [path for path in folder.iterdir() if not path.name.startswith(".")]
  archives = [path for path in files if path.suffix == ".npz"]
  if len(archives) == 1:
    return archives[0]
  return folder if files else None


def _npz(folder: pathlib.Path, stems, endings) -> pathlib.Path | None:
  paths = (folder / f"{stem}{ending}" for stem in stems for ending in endings)
  return next((path for path in paths if path.is_file()), None)


def _fetch(source: Source, stems, refused) -> str:
  if source.hub == "big_vision":
    raise ValueError("is a public file, download it")
  is_kaggle = source.hub == "Kaggle"
  module = "kagglehub" if is_kaggle else "huggingface_hub"
  try:
    client = importlib.import_module(module)
  except ImportError:
    raise ValueError(f"{module} is not installed") from None
  try:
    if is_kaggle:
      return str(client.model_download(source.handle, *source.files))
    files = list(source.files)
    found = client.snapshot_download(source.handle, allow_patterns=files)
  except Exception as e:  # offline, not signed in, no licence, no such file
    status = getattr(getattr(e, "response", None), "status_code", None)
    if reason := refused.get(status):
      raise ValueError(f"{status}, {reason}") from None
    reason = " ".join(str(e).split()) or type(e).__name__
    raise ValueError(reason[:200]) from None
  folder = pathlib.Path(found)
  kinds = {path.suffix for path in folder.iterdir()}
  if not kinds & {".npz", ".safetensors"}:
    raise ValueError(f"no weights in {folder}")
  return str(_look_inside(folder, stems))
