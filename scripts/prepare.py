"""Writes the folder of a published data set, as its config reads it.

    python -m scripts.prepare --list
    python -m scripts.prepare okvqa --list
    python -m scripts.prepare okvqa --raw downloads --out data/okvqa
    python -m scripts.prepare okvqa --check

Reads the files of DIR as the publisher ships them, packed or not; --list names
them. Writes OUT/SPLIT.jsonl for each split, with the fields that the configs
name. Pictures that are files stay where they are, unless --link or --pack is
given; those in archives go to OUT/images. A second run goes on where the first
has stopped. In the end, or with --check alone, all is compared with the
published counts.
"""

import os
import sys
import textwrap

import jax

from paligemma import messages, registry
from scripts.datasets import catalog, folder
from trainers import command_line, progress


def listing(name: str | None) -> str:
  """What is known of a data set; without a name, of all in a line each."""
  if name is None:
    rows = [("name", "licence", "download, about", "splits")]
    for key, data_set in catalog.DATA_SETS.items():
      splits = list(data_set.splits)
      shown = ", ".join(splits[:3])
      more = f", and {len(splits) - 3} more" if len(splits) > 3 else ""
      rows.append((key, data_set.licence, data_set.size, shown + more))
    return "\n".join(messages.aligned(rows))
  data_set = registry.lookup(catalog.DATA_SETS, name, "data set")
  about = textwrap.fill(f"{name}: {data_set.about}", 80)
  rows = [
    ("homepage", data_set.homepage),
    ("licence", data_set.licence),
    ("download", f"about {data_set.size}"),
  ]
  files = [(f"  {file}", source) for file, source in data_set.files.items()]
  splits = [
    (
      f"  {split}.jsonl",
      "" if facts.count is None else f"{facts.count:,}",
      "answers are not public" if facts.hidden else "",
    )
    for split, facts in data_set.splits.items()
  ]
  return "\n".join(
    [
      about,
      *messages.aligned(rows),
      "files, in --raw DIR or in a folder or archive of it:",
      *messages.aligned(files),
      "splits, with their published numbers of examples:",
      *messages.aligned(splits),
    ]
  )


def _parser():
  parser = command_line.parser(__doc__)
  parser.add_argument(
    "name", nargs="?", help="of the data set, one of those that --list shows"
  )
  parser.add_argument("--raw", metavar="DIR", help="what was downloaded")
  parser.add_argument(
    "--out", metavar="OUT", help="folder to write (default: data/NAME)"
  )
  parser.add_argument(
    "--splits", metavar="A+B", help="those to write (default: all)"
  )
  parser.add_argument(
    "--list",
    action="store_true",
    help="print where files come from, licences, sizes, splits and counts",
  )
  parser.add_argument(
    "--check",
    action="store_true",
    help="compare OUT with what was published, and decode every picture; fails "
    "if anything differs",
  )
  parser.add_argument(
    "--skip_bad",
    action="store_true",
    help="leave out examples without their picture, or with one that --pack "
    "finds damaged, or with malformed fields, and splits whose files are "
    "missing or damaged; with --check, what was left out may be missing",
  )
  pictures = parser.add_mutually_exclusive_group()
  pictures.add_argument(
    "--link",
    action="store_true",
    help="links (copies, on another disk) of all pictures in OUT/images, so "
    "that OUT needs no other folder",
  )
  pictures.add_argument(
    "--pack",
    action="store_true",
    help="pack each split with its pictures into large files, as scripts.pack "
    "does; a picture is stored with every example that names it",
  )
  parser.add_argument(
    "--jobs",
    type=int,
    default=min(os.cpu_count() or 1, 8),
    help="processes, each of up to 1 GiB (default: %(default)s)",
  )
  return parser


def main() -> None:
  jax.config.update("jax_platforms", "cpu")  # leave a GPU to others
  args = _parser().parse_args()
  if args.list:
    print(listing(args.name))
    return
  if args.name is None:
    raise ValueError("expected the name of a data set; --list shows all")
  out = args.out or f"data/{args.name}"
  splits = [split for split in (args.splits or "").split("+") if split]
  jobs = max(args.jobs, 1)
  shared = dict(splits=splits, skip_bad=args.skip_bad, jobs=jobs)
  if args.raw is None and not args.check:
    raise ValueError(
      f"--raw: expected the folder of what was downloaded; python -m "
      f"scripts.prepare {args.name} --list names it"
    )
  left_out = []  # (split, Written)
  if args.raw is not None:
    with progress.bar(args.name) as show:
      written = folder.prepare(
        args.name, args.raw, out, link=args.link, show=show, **shared
      )
    left_out = [(k, x) for k, x in written.items() if x.first]
    if args.pack:
      packed = folder.pack(
        args.name, out, splits=splits, skip_bad=args.skip_bad
      )
      left_out += packed.items()
  with progress.bar("pictures", unit="pictures") as show:
    rows, wrong = folder.check(
      args.name, out, decode=args.check, show=show, **shared
    )
  print("\n".join(messages.aligned(rows)))
  for split, x in left_out:
    what = "left out" if x.examples is None else f"{x.left_out:,} left out"
    print(f"{split}: {what}: {x.first}", file=sys.stderr)
  for line in wrong[: folder.MOST]:
    print(f"differs: {messages.one_line(line)}", file=sys.stderr)
  if len(wrong) > folder.MOST:
    print(f"differs: {len(wrong) - folder.MOST} more", file=sys.stderr)
  if wrong and args.check:
    raise ValueError(f"{out}: {len(wrong)} differences, see above")


if __name__ == "__main__":
  command_line.run(main)
