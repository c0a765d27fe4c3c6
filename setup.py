"""Installs the library `paligemma`; everything else runs from the checkout."""

from setuptools import find_packages, setup

setup(
  name="paligemma",
  version="0.2.0",
  description="Fine-tune, evaluate and ship PaliGemma 1 and 2 in JAX.",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["paligemma", "paligemma.*"]),
  package_data={"paligemma": ["assets/*", "py.typed"]},
  install_requires=[
    "absl-py",
    "einops",
    "etils[epath,epy]",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10,<0.12",
    "jaxtyping>=0.3.11",
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
    "tensorboardX",
    "tensorstore",
    "tqdm",
  ],
  extras_require={
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "tokamax": ["tokamax>=0.0.12"],  # attention kernels for Hopper GPUs
    "plan": ["libtpu"],  # the compiler of TPUs; it needs no TPU
    # Data sets of the TFDS catalogue; no TensorFlow is needed to read them.
    "tfds": ["tensorflow-datasets>=4.9.10", "importlib_resources"],
    "tokenizers": ["tokenizers>=0.22"],  # tokenizer.json of transformers
    "keras": ["h5py"],  # checkpoints of keras-hub
    "video": ["av>=18"],  # videos
    "heic": ["pillow-heif>=1.8"],  # photographs of iPhones
    "supervision": ["supervision>=0.26"],  # its Detections, from answers
    "hub": ["huggingface_hub", "kagglehub"],  # presets by name
    "demo": [
      "matplotlib",  # the fonts of printed digits
      "scikit-learn",  # the scans of handwritten digits
    ],
    # Other implementations to compare with; never used at run time.
    "parity": ["keras", "keras-hub", "peft", "torch", "transformers"],
    "test": [
      "av>=18",
      "beartype",
      "h5py",
      "hypothesis",
      "importlib_resources",
      "ipykernel",
      "matplotlib",
      "nbclient",
      "nbformat",
      "pillow-heif>=1.8",
      "pytest",
      "pytest-xdist",
      "ruff",
      "safetensors",
      "scikit-learn",
      "scipy",
      "supervision>=0.26",
      "tensorflow-datasets>=4.9.10",
      "tokenizers>=0.22",
    ],
  },
)
