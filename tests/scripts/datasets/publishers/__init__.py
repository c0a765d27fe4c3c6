"""Made-up files in the layouts of publishers, and the lines they become.

A function for each data set, in the module of its form, returns a Made: its
files and the lines. Each split has dozens of examples, with whatever the format
of the publisher is known to have.
"""

from tests.scripts.datasets.publishers.captions import (
  coco35l,
  cococap,
  scicap,
  textcaps,
)
from tests.scripts.datasets.publishers.choices import (
  ai2d,
  chartqa,
  mmvp,
  ocrvqa,
  science_qa,
)
from tests.scripts.datasets.publishers.documents import (
  docvqa,
  infovqa,
  stvqa,
  textvqa,
)
from tests.scripts.datasets.publishers.made import (
  jpeg,
  read_lines,
  write_all,
)
from tests.scripts.datasets.publishers.objects import coco
from tests.scripts.datasets.publishers.pairs import nlvr2
from tests.scripts.datasets.publishers.questions import (
  aokvqa,
  gqa,
  okvqa,
  pope,
  tallyqa,
  vizwizvqa,
  vqa,
  vqav2,
)
from tests.scripts.datasets.publishers.refcoco import refcoco_seg
from tests.scripts.datasets.publishers.remote_sensing import (
  rsvqa_hr,
  rsvqa_lr,
)
from tests.scripts.datasets.publishers.screens import screen2words, widgetcap
from tests.scripts.datasets.publishers.videos import (
  activitynet_cap,
  activitynet_qa,
  msrvtt_cap,
  msrvtt_qa,
  msvd_qa,
  vatex_cap,
)

__all__ = [
  "activitynet_cap",
  "activitynet_qa",
  "ai2d",
  "aokvqa",
  "chartqa",
  "coco",
  "coco35l",
  "cococap",
  "docvqa",
  "gqa",
  "infovqa",
  "jpeg",
  "mmvp",
  "msrvtt_cap",
  "msrvtt_qa",
  "msvd_qa",
  "nlvr2",
  "ocrvqa",
  "okvqa",
  "pope",
  "read_lines",
  "refcoco_seg",
  "rsvqa_hr",
  "rsvqa_lr",
  "scicap",
  "science_qa",
  "screen2words",
  "stvqa",
  "tallyqa",
  "textcaps",
  "textvqa",
  "vatex_cap",
  "vizwizvqa",
  "vqa",
  "vqav2",
  "widgetcap",
  "write_all",
]
