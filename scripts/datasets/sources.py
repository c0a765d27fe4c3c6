"""Pictures that several data sets share, and the addresses they come from."""

_COCO = "http://images.cocodataset.org"
_VISUAL_GENOME = "https://cs.stanford.edu/people/rak248/VG_100K_2"
_RICO = "https://storage.googleapis.com/crowdstf-rico-uiuc-4540"

COCO_2014 = {
  "train2014": f"{_COCO}/zips/train2014.zip (13 GB)",
  "val2014": f"{_COCO}/zips/val2014.zip (6 GB)",
}
COCO_2015 = {"test2015": f"{_COCO}/zips/test2015.zip (12 GB)"}
COCO_2017 = {
  "train2017": f"{_COCO}/zips/train2017.zip (18 GB)",
  "val2017": f"{_COCO}/zips/val2017.zip (1 GB)",
  "test2017": f"{_COCO}/zips/test2017.zip (6 GB)",
}
COCO_ANNOTATIONS = f"{_COCO}/annotations/annotations_trainval2017.zip"
GQA = {
  "images": "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip (20 GB)"
}
RICO = {"combined": f"{_RICO}/rico_dataset_v0.1/unique_uis.tar.gz (6 GB)"}
TEXTVQA = {
  "train_images": "https://dl.fbaipublicfiles.com/textvqa/images/"
  "train_val_images.zip (7 GB)",
  "test_images": "https://dl.fbaipublicfiles.com/textvqa/images/"
  "test_images.zip (1 GB)",
}
VISUAL_GENOME = {
  "VG_100K": f"{_VISUAL_GENOME}/images.zip (9 GB)",
  "VG_100K_2": f"{_VISUAL_GENOME}/images2.zip (5 GB)",
}


def coco_2014(image_id: int, subset: str) -> str:
  """The path of a picture of COCO, of 2014 or 2015."""
  return f"{subset}/COCO_{subset}_{image_id:012d}.jpg"
