"""Copies a PaliGemma JSONL and its images into few large files.

    python -m scripts.pack train.jsonl --out data/packed

For pods and object stores, which read few large files faster than many small
ones: a config that says train=data/packed trains as with train=train.jsonl, on
the same examples in the same order, bit for bit. The folder holds all fields
and the encoded images, in ArrayRecord files; nothing else is needed to train,
so copy it as it is. It is on a local or mounted file system.

Images are checked up to their heads. A run that was interrupted goes on with
the same command; until it has ended, the folder is refused by training.
"""

from etils import epath

from paligemma.data import image_files, shards, sources
from trainers import command_line, progress

_MIB = 2**20


def pack(
  path: epath.PathLike,
  out: epath.PathLike,
  *,
  image_root: epath.PathLike | None = None,
  shard_size: int = 256,
) -> tuple[int, int]:
  """Packs a JSONL into a folder.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    How many examples, and how many shards, the folder holds.
  """
  if shard_size < 1:
    raise ValueError(f"--shard_size is {shard_size}, expected at least 1 MiB")
  if shards.is_packed(path):
    raise ValueError(f"{path}: is a folder of scripts.pack, expected a JSONL")
  source = sources.Jsonl(path, image_root)

  def read(index):
    example = source[index]
    image = example["image"]
    images = image if isinstance(image, list) else [image]
    for data in images:
      image_files.size(data, where=example["_where"])
    return images

  with progress.bar("packing") as show:
    count = shards.write(
      out,
      source.lines,
      read,
      source.copies(),
      shard_bytes=shard_size * _MIB,
      show=show,
    )
  return len(source), count


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("path", metavar="TRAIN.jsonl")
  parser.add_argument("--out", required=True, metavar="FOLDER")
  parser.add_argument("--image_root", help="default: the folder of the JSONL")
  parser.add_argument(
    "--shard_size", type=int, default=256, help="of a file, in MiB"
  )
  args = parser.parse_args()
  examples, count = pack(**vars(args))
  noun = "shard" if count == 1 else "shards"
  print(f"{args.out}: {examples:,} examples in {count:,} {noun}")


if __name__ == "__main__":
  command_line.run(main)
