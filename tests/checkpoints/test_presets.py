"""The published checkpoints, and where they are looked for."""

import math
import sys
import types

import jax
import numpy as np
import pytest

from paligemma import tree, variants
from paligemma.checkpoints import presets
from paligemma.models import gemma, paligemma

# Parameters by variant and pixels, as keras-hub's lists of presets state them;
# but for the 28B, for which they repeat the count of 224 pixels.
COUNTS = {
  ("paligemma_3b", 224): 2_923_335_408,
  ("paligemma_3b", 448): 2_924_220_144,
  ("paligemma_3b", 896): 2_927_759_088,
  ("paligemma2_3b", 224): 3_032_094_960,
  ("paligemma2_3b", 448): 3_032_979_696,
  ("paligemma2_3b", 896): 3_036_518_640,
  ("paligemma2_10b", 224): 9_662_409_456,
  ("paligemma2_10b", 448): 9_663_294_192,
  ("paligemma2_10b", 896): 9_666_833_136,
  ("paligemma2_28b", 224): 27_650_192_112,
  ("paligemma2_28b", 448): 27_650_192_112 + (1024 - 256) * 1152,
  ("paligemma2_28b", 896): 27_650_192_112 + (4096 - 256) * 1152,
  ("gemma_2b", None): 2_506_172_416,
  ("gemma_7b", None): 8_537_680_896,
  ("vault_gemma_1b", None): 1_038_741_120,
  ("gemma2_2b", None): 2_614_341_888,
  ("gemma2_9b", None): 9_241_705_984,
  ("gemma2_27b", None): 27_227_128_320,
}
# SigLIP: tests/test_variants.py.
SIZES = sorted(
  {
    (p.variant, p.res, p.vocab_size)
    for p in presets.PRESETS.values()
    if p.variant not in variants.SIGLIP
  },
  key=str,
)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
  """Nothing is asked of a hub by chance, nor found where a user keeps files."""
  monkeypatch.delenv(presets.DIRECTORY_VARIABLE, raising=False)
  monkeypatch.setitem(sys.modules, "kagglehub", None)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture
def kaggle(monkeypatch):
  """Sets what kagglehub.model_download is."""

  def install(model_download):
    client = types.SimpleNamespace(model_download=model_download)
    monkeypatch.setitem(sys.modules, "kagglehub", client)

  return install


@pytest.fixture
def hugging_face(monkeypatch):
  """Sets what huggingface_hub.snapshot_download is."""

  def install(snapshot_download):
    client = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)

  return install


def touch(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch()
  return path


def test_every_published_paligemma_has_a_name():
  names = {
    *(f"paligemma_3b_pt_{res}" for res in (224, 448, 896)),
    *(f"paligemma_3b_mix_{res}" for res in (224, 448)),
    *(
      f"paligemma2_{size}_{kind}"
      for size in ("3b", "10b", "28b")
      for kind in ("pt_224", "pt_448", "pt_896", "mix_224", "mix_448")
    ),
    "paligemma2_3b_ft_docci_448",
    "paligemma2_10b_ft_docci_448",
  }
  assert {n for n in presets.PRESETS if n.startswith("paligemma")} == names
  for name in names:
    preset = presets.PRESETS[name]
    assert name.startswith(preset.variant)
    assert name.endswith(str(preset.res))
    assert preset.vocab_size == 257_152


def test_variants_exist():
  for preset in presets.PRESETS.values():
    others = variants.GEMMA if preset.res is None else variants.PALIGEMMA
    assert preset.variant in others | variants.SIGLIP


def test_names_are_of_one_preset():
  stems = [s for p in presets.PRESETS.values() for s in p.stems]
  assert len(stems) == len(set(stems))
  for stem, name in presets.ALIASES.items():
    assert presets.get(stem) is presets.PRESETS[name]


@pytest.mark.parametrize(("variant", "res", "vocab_size"), SIZES)
def test_number_of_parameters(variant, res, vocab_size):
  tokens = np.zeros((1, 1), np.int32)
  if res is None:
    model = gemma.make(variant, vocab_size=vocab_size)
    inputs = (np.zeros((1, 1, model.width), np.float32), tokens == 0, tokens)
  else:
    model = paligemma.make(variant, vocab_size=vocab_size)
    inputs = (np.zeros((1, res, res, 3), np.float32), tokens, tokens)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  shapes = tree.flatten(shapes["params"])
  if res is None:  # __call__ takes embedded tokens
    shapes["embedder/input_embedding"] = np.empty((vocab_size, model.width))
  count = sum(math.prod(leaf.shape) for leaf in shapes.values())
  assert count == COUNTS[variant, res]


def test_get():
  preset = presets.get("paligemma2_3b_pt_224")
  assert (preset.variant, preset.res) == ("paligemma2_3b", 224)
  assert [(s.hub, s.handle, s.files) for s in preset.sources] == [
    (
      "Kaggle",
      "google/paligemma-2/jax/paligemma2-3b-pt-224/1",
      ("paligemma2-3b-pt-224.b16.npz",),
    ),
    (
      "Hugging Face",
      "google/paligemma2-3b-pt-224",
      ("*.json", "*.safetensors", "*.model"),
    ),
    ("Kaggle", "keras/paligemma2/keras/pali_gemma2_pt_3b_224/2", ()),
  ]
  assert [s.page for s in preset.sources] == [
    "https://www.kaggle.com/models/google/paligemma-2",
    "https://huggingface.co/google/paligemma2-3b-pt-224",
    "https://www.kaggle.com/models/keras/paligemma2",
  ]
  mix = presets.get("paligemma_3b_mix_448").sources[:2]
  assert [(s.handle, s.files) for s in mix] == [
    (
      "google/paligemma/jax/paligemma-3b-mix-448/1",
      ("paligemma-3b-mix-448.npz",),
    ),
    ("google/paligemma-3b-mix-448-jax", ("*.npz",)),
  ]


@pytest.mark.parametrize(
  ("alias", "name"),
  [
    ("paligemma-3b-pt-224", "paligemma_3b_pt_224"),
    ("pali_gemma_3b_224", "paligemma_3b_pt_224"),
    ("pali_gemma2_mix_3b_224", "paligemma2_3b_mix_224"),
    ("pali_gemma2_mix_28b_448", "paligemma2_28b_mix_448"),
    ("pali_gemma2_28b_mix_448", "paligemma2_28b_mix_448"),
    ("pali_gemma_2_ft_docci_3b_448", "paligemma2_3b_ft_docci_448"),
    ("gemma-2-2b-it", "gemma2_instruct_2b_en"),
  ],
)
def test_other_names(alias, name):
  assert presets.get(alias) is presets.PRESETS[name]
  assert presets.is_name(alias)


def test_unknown_names():
  with pytest.raises(
    ValueError,
    match='unknown preset "paligemma2_3b_pt_222", expected one of: .*'
    r'Did you mean "paligemma2_3b_pt_224"\?$',
  ):
    presets.get("paligemma2_3b_pt_222")
  assert not presets.is_name("paligemma2_3b_pt_222")
  assert not presets.is_name("some/paligemma2_3b_pt_224")


@pytest.mark.parametrize(
  "file",
  [
    "paligemma_3b_pt_224.npz",
    "paligemma-3b-pt-224.npz",
    "paligemma-3b-pt-224.f16.npz",
    "paligemma-3b-pt-224.bf16.npz",
    "paligemma-3b-pt-224.b16.npz",
    "paligemma-3b-pt-224/paligemma-3b-pt-224.f16.npz",
    "paligemma-3b-pt-224-jax/paligemma-3b-pt-224.npz",
    "paligemma_3b_pt_224/anything.npz",
    "google/paligemma-3b-pt-224.npz",
    "google/paligemma-3b-pt-224-jax/paligemma-3b-pt-224.npz",
  ],
)
def test_files_in_a_directory(tmp_path, file):
  touch(tmp_path / "aaa/paligemma-3b-pt-448.npz")
  touch(tmp_path / "paligemma-3b-mix-224.npz")
  path = touch(tmp_path / file)
  assert presets.find("paligemma_3b_pt_224", tmp_path) == str(path)


@pytest.mark.parametrize(
  "folder",
  [
    "paligemma_3b_pt_224",
    "paligemma-3b-pt-224",
    "pali_gemma_3b_224",
    "google/paligemma-3b-pt-224",
    "keras/pali_gemma_3b_224",
  ],
)
def test_folders_in_a_directory(tmp_path, folder):
  (tmp_path / "paligemma-3b-pt-224").mkdir()  # empty
  for file in ("config.json", "model.safetensors", ".cache"):
    touch(tmp_path / folder / file)
  for name in ("paligemma_3b_pt_224", "pali_gemma_3b_224"):
    assert presets.find(name, str(tmp_path)) == str(tmp_path / folder)


def test_the_full_precision_first(tmp_path):
  for ending in ("f16.npz", "npz", "bf16.npz"):
    touch(tmp_path / f"paligemma-3b-pt-224.{ending}")
  found = presets.find("paligemma_3b_pt_224", tmp_path)
  assert found == str(tmp_path / "paligemma-3b-pt-224.npz")
  found = presets.find("paligemma_3b_pt_224", tmp_path, half=True)
  assert found == str(tmp_path / "paligemma-3b-pt-224.f16.npz")


@pytest.mark.parametrize(
  ("name", "file"),
  [
    ("paligemma_3b_mix_448", "paligemma-3b-mix-448.f16.npz"),
    ("paligemma2_3b_pt_224", "paligemma2-3b-pt-224.b16.npz"),
  ],
)
def test_half_the_size_from_kaggle(kaggle, name, file):
  kaggle(lambda handle, path: path)
  assert presets.find(name, half=True) == file


def test_a_directory_comes_before_the_hubs(tmp_path, kaggle):
  kaggle(lambda *args: pytest.fail("asked Kaggle"))
  path = touch(tmp_path / "gemma_2b_en/model.weights.h5").parent
  assert presets.find("gemma_2b_en", tmp_path) == str(path)


def test_a_directory_that_is_none(tmp_path):
  with pytest.raises(ValueError, match=r"x: no such directory of checkpoints"):
    presets.find("gemma_2b_en", tmp_path / "x")


def test_from_kaggle(tmp_path, kaggle):
  asked = []

  def model_download(handle, path=None):
    asked.append((handle, path))
    return f"/cache/{handle}/{path}"

  kaggle(model_download)
  found = presets.find("paligemma2_10b_mix_224", tmp_path)
  handle = "google/paligemma-2/jax/paligemma2-10b-mix-224/1"
  file = "paligemma2-10b-mix-224.b16.npz"
  assert found == f"/cache/{handle}/{file}"
  assert presets.find("gemma2_9b_en") == (
    "/cache/keras/gemma2/keras/gemma2_9b_en/4/None"
  )
  assert asked == [
    (handle, file),
    ("keras/gemma2/keras/gemma2_9b_en/4", None),
  ]


def test_from_hugging_face(tmp_path, hugging_face):
  asked = []

  def snapshot_download(repo_id, *, allow_patterns):
    asked.append((repo_id, allow_patterns))
    folder = tmp_path / repo_id
    touch(folder / "README.md")
    if "*.npz" in allow_patterns:
      touch(folder / "weights.npz")
    else:
      touch(folder / "model-00001-of-00002.safetensors")
    return str(folder)

  hugging_face(snapshot_download)
  assert presets.find("paligemma_3b_pt_896") == str(
    tmp_path / "google/paligemma-3b-pt-896-jax/weights.npz"
  )
  assert presets.find("paligemma2_28b_pt_896") == str(
    tmp_path / "google/paligemma2-28b-pt-896"
  )
  assert asked == [
    ("google/paligemma-3b-pt-896-jax", ["*.npz"]),
    (
      "google/paligemma2-28b-pt-896",
      ["*.json", "*.safetensors", "*.model"],
    ),
  ]


def test_the_next_source_when_one_fails(tmp_path, kaggle, hugging_face):
  def model_download(handle, path=None):
    raise OSError("403 Client Error.\n\nYou don't have permission")

  def snapshot_download(repo_id, *, allow_patterns):
    folder = tmp_path / repo_id.partition("/")[2]
    if repo_id.endswith("-jax"):
      return str(touch(folder / "README.md").parent)
    return str(touch(folder / "model.safetensors").parent)

  kaggle(model_download)
  hugging_face(snapshot_download)
  found = presets.find("paligemma_3b_mix_224")
  assert found == str(tmp_path / "paligemma-3b-mix-224")


def test_neither_here_nor_there(tmp_path, kaggle):
  def model_download(handle, path=None):
    raise OSError("403 Client Error.\n\nYou don't have permission")

  kaggle(model_download)
  with pytest.raises(ValueError) as e:
    presets.find("pali_gemma2_mix_28b_448", tmp_path)
  reason = "403 Client Error. You don't have permission"
  assert str(e.value) == (
    f'preset "pali_gemma2_mix_28b_448": looked in {tmp_path} and the folders '
    "in it for paligemma2_28b_mix_448, pali_gemma2_mix_28b_448, "
    "paligemma2-28b-mix-448, paligemma2-28b-mix-448-jax, "
    "pali_gemma2_28b_mix_448, a folder or with one of the endings .npz "
    ".bf16.npz .b16.npz .f16.npz; "
    f"Kaggle, google/paligemma-2/jax/paligemma2-28b-mix-448/1: {reason}; "
    "Hugging Face, google/paligemma2-28b-mix-448-jax: huggingface_hub is not "
    "installed; Hugging Face, google/paligemma2-28b-mix-448: huggingface_hub "
    "is not installed; Kaggle, keras/paligemma2/keras/"
    f"pali_gemma2_28b_mix_448/3: {reason}. Get it at "
    "https://www.kaggle.com/models/google/paligemma-2 or "
    "https://huggingface.co/google/paligemma2-28b-mix-448-jax or "
    "https://huggingface.co/google/paligemma2-28b-mix-448 or "
    "https://www.kaggle.com/models/keras/paligemma2: sign in, accept the "
    "licence there, and put it into the directory as "
    "paligemma2_28b_mix_448.npz or paligemma2_28b_mix_448/; or install "
    "kagglehub or huggingface_hub and call kagglehub.login() or "
    "huggingface_hub.login()"
  )


def test_siglip_needs_no_account(tmp_path, hugging_face):
  def snapshot_download(repo_id, *, allow_patterns):
    error = OSError("401 Client Error")
    error.response = types.SimpleNamespace(status_code=401)
    raise error

  hugging_face(snapshot_download)
  with pytest.raises(ValueError) as e:
    presets.find("siglip_b16_224", tmp_path)
  assert str(e.value).endswith(
    "; Hugging Face, google/siglip-base-patch16-224: 401 Client Error; "
    "big_vision, siglip/webli_en_b16_224_63724782: is a public file, download "
    "it. Get it at https://huggingface.co/google/siglip-base-patch16-224 or "
    "https://storage.googleapis.com/big_vision/siglip/webli_en_b16_224_63724782"
    ".npz: it is under Apache 2.0 and needs no account; put it into the "
    "directory as siglip_b16_224.npz or siglip_b16_224/; or install "
    "huggingface_hub"
  )
  assert [n for n, x in presets.PRESETS.items() if x.is_open] == [
    n for n in presets.PRESETS if n.startswith("siglip")
  ]


def test_without_a_directory_and_without_a_client():
  with pytest.raises(
    ValueError, match=r"no directory \(PALIGEMMA_CH.* for gem"
  ):
    presets.find("gemma_2b_en")


def test_the_directory_may_come_from_the_environment(tmp_path, monkeypatch):
  path = touch(tmp_path / "paligemma2-3b-pt-224.b16.npz")
  monkeypatch.setenv(presets.DIRECTORY_VARIABLE, str(tmp_path))
  assert presets.find("paligemma2_3b_pt_224") == str(path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match=r"looked in .*empty and the folders"):
    presets.find("paligemma2_3b_pt_224", tmp_path / "empty")
