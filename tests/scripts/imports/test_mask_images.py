"""Masks as pictures, in the layouts that people have."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from paligemma.data import masks
from scripts.imports import mask_images
from tests.scripts.imports.reading import picture, read

SIZE = (7, 5)


def values(**objects):
  """Of 7x5: a square of 1 to 4 pixels, a row of one, at will."""
  found = np.zeros(SIZE, np.uint8)
  for name, value in objects.items():
    at = {"square": np.s_[1:3, 2:4], "row": np.s_[5, :], "rest": np.s_[:, 0]}
    found[at[name]] = value
  return found


def write(path, found, mode=None, palette=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(found, mode) if mode else Image.fromarray(found)
  if palette:
    image.putpalette(palette)
  image.save(path)


def setting(folder, classes="1 cat\n2: red dog\n", names=("a.jpg",)):
  for name in names:
    picture(folder / "images" / name, SIZE)
  (folder / "classes.txt").write_text(classes)
  return folder


def found_in(src, images=None, **options):
  """{name of the picture: {(label, pixels of it)}}, labels, problems."""
  found, labels, problems = read(mask_images.read, src, images, **options)
  objects = {}
  for entry in found:
    assert entry.size == SIZE
    objects[entry.images[0].name] = sorted(
      (thing.label, int(masks.from_rle(thing.mask, *SIZE).sum()), thing.box)
      for thing in entry.objects
    )
  return objects, labels, problems


SQUARE = (4, (1, 2, 3, 4))
ROW = (5, (5, 0, 6, 5))


@pytest.mark.parametrize(
  "name", ["a.png", "a_mask.png", "a-seg.tif", "a/0.bmp"]
)
def test_each_value_is_an_object(name, tmp_path):
  src = setting(tmp_path)
  write(src / "masks" / name, values(square=1, row=2))
  objects, labels, problems = found_in(src)
  assert objects == {"a.jpg": [("cat", *SQUARE), ("red dog", *ROW)]}
  assert labels == ("cat", "red dog") and not problems.notes


def test_the_mask_is_that_of_the_longest_name(tmp_path):
  src = setting(tmp_path, names=("a.jpg", "a_1.jpg", "b.jpg"))
  write(src / "masks" / "a_1_mask.png", values(square=1))
  write(src / "masks" / "a_mask.png", values(row=2))
  objects, _, problems = found_in(src)
  assert objects == {
    "a.jpg": [("red dog", *ROW)],
    "a_1.jpg": [("cat", *SQUARE)],
  }
  what = "pictures without a mask left out"
  assert problems.notes == {what: (1, f"{src}/images/b.jpg")}


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_one_class_in_white(white, mode, tmp_path):
  src = setting(tmp_path, "1 cat\n")
  mask = Image.fromarray(values(square=white, row=white))
  mask = mask.point(lambda x: 255 * bool(x)) if mode == "1" else mask
  (src / "masks").mkdir()
  mask.convert(mode).save(src / "masks" / "a.png")
  objects, _, _ = found_in(src)
  assert objects == {"a.jpg": [("cat", 9, (1, 0, 6, 5))]}


def test_background_void_and_an_option_for_folders(tmp_path):
  """Oxford-IIIT Pet: 1 is the animal, 2 around it, 3 its border."""
  trimaps = tmp_path / "annotations" / "trimaps"
  found = values(square=1, row=3)
  found[found == 0] = 2
  write(trimaps / "a.png", found)
  picture(tmp_path / "images" / "a.jpg", SIZE)
  (trimaps.parent / "classes.txt").write_text("1 pet\n2 background\n3 void\n")
  objects, labels, _ = found_in(trimaps, tmp_path / "images")
  assert objects == {"a.jpg": [("pet", *SQUARE)]}
  assert labels == ("pet",)


def test_voc_parts_classes_into_objects(tmp_path):
  """As labelme2voc writes it: indices into a palette, 255 is void."""
  palette = [*range(256), *range(256), *range(255, -1, -1)]
  classes = values(square=1, row=1, rest=255)
  classes[4, 4] = 2
  objects = values(square=2, row=1, rest=255)
  objects[4, 4] = 3
  for i, name in enumerate("ab"):
    picture(tmp_path / "JPEGImages" / f"{name}.jpg", SIZE)
    for kind, found in (("Class", classes), ("Object", objects)):
      path = tmp_path / f"Segmentation{kind}" / f"{name}.png"
      write(path, found, "P", palette)
    path = (
      tmp_path / "ImageSets" / "Segmentation" / f"{('train', 'val')[i]}.txt"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{name}\n")
  (tmp_path / "class_names.txt").write_text(
    "__ignore__\n_background_\naeroplane\nred dog\n"
  )
  wanted = [
    ("aeroplane", 4, (1, 2, 3, 4)),
    ("aeroplane", 4, (5, 1, 6, 5)),
    ("red dog", 1, (4, 4, 5, 5)),
  ]
  found, labels, problems = found_in(tmp_path)
  assert found == {"a.jpg": wanted, "b.jpg": wanted}
  assert labels == ("aeroplane", "red dog")
  assert list(problems.notes) == ["pixels of value 255, void, are of no object"]
  splits = [entry.split for entry in read(mask_images.read, tmp_path)[0]]
  assert splits == ["train", "val"]
  objects[objects == 2] = 0
  write(tmp_path / "SegmentationObject" / "b.png", objects, "P", palette)
  with pytest.raises(
    ValueError, match=r"Class/b\.png: pixels of a class are o"
  ):
    read(mask_images.read, tmp_path)


@pytest.mark.parametrize("palette", [False, True])
def test_colours_of_cvat(palette, tmp_path):
  (tmp_path / "labelmap.txt").write_text(
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\n"
    "cat:128,0,64::\nred dog:64,64,64::\n"
  )
  colours = np.array([[0, 0, 0], [128, 0, 64], [64, 64, 64]], np.uint8)
  found = values(square=1, row=2)
  picture(tmp_path / "JPEGImages" / "a.png", SIZE)
  path = tmp_path / "SegmentationClass" / "a.png"
  if palette:
    write(path, found, "P", colours.ravel().tolist())
  else:
    write(path, colours[found])
  objects, labels, _ = found_in(tmp_path)
  assert objects == {"a.png": [("cat", *SQUARE), ("red dog", *ROW)]}
  assert labels == ("cat", "red dog")


def test_a_folder_of_masks_for_each_picture(tmp_path):
  """Data Science Bowl 2018: all masks are of the one picture beside them."""
  for key in ("8f2", "a01"):
    picture(tmp_path / key / "images" / f"{key}.png", SIZE)
    write(tmp_path / key / "masks" / "07b.png", values(square=255))
    write(tmp_path / key / "masks" / "c4.png", values(row=255))
  (tmp_path / "classes.txt").write_text("1 nucleus\n")
  wanted = [("nucleus", *SQUARE), ("nucleus", *ROW)]
  assert found_in(tmp_path)[0] == {"8f2.png": wanted, "a01.png": wanted}


def test_classes_in_the_names_of_masks(tmp_path):
  src = setting(tmp_path, names=("a.jpg", "b.jpg"))
  write(src / "masks" / "a" / "cat_1.png", values(square=255))
  write(src / "masks" / "a" / "red dog-2.png", values(row=255))
  write(src / "masks" / "b_Cat1.png", values(row=255))
  assert found_in(src)[0] == {
    "a.jpg": [("cat", *SQUARE), ("red dog", *ROW)],
    "b.jpg": [("cat", *ROW)],
  }


def test_splits_are_folders(tmp_path):
  src = setting(tmp_path, names=("valid/train_1.jpg", "x/b.jpg"))
  write(src / "masks" / "valid" / "train_1.png", values(square=1))
  write(src / "masks" / "x" / "b.png", values())
  found, _, _ = read(mask_images.read, src)
  assert [(e.split, len(e.objects)) for e in found] == [
    ("val", 1),
    ("train", 0),
  ]


@pytest.mark.parametrize(
  ("name", "found", "message"),
  [
    ("a.png", values(square=7), "a.png: value 7 is that of no class, the clas"),
    (
      "a.png",
      np.full((*SIZE, 3), [128, 0, 64], np.uint8),
      "a.png: colour 128,0,64 is that of no class",
    ),
    (
      "a.png",
      np.stack([values()] * 3 + [values(square=255)], axis=-1),
      "a.png: the mask is transparent in part, expected values alone",
    ),
    ("x.png", values(square=1), "x.png: no picture has this mask"),
    (
      "a_1.png",
      values(square=1),
      "one of 2 masks of its picture, expected the",
    ),
    (
      "a_cat.png",
      values(square=1, row=2),
      "3 values in the mask of one object",
    ),
    ("a_cat.png", values(), "a_cat.png: mask is empty"),
    ("a_cat.png", np.ones((3, 5), np.uint8), "of another size than others of"),
  ],
)
def test_bad_masks(name, found, message, tmp_path):
  src = setting(tmp_path, names=("a.jpg", "b.jpg"))
  write(src / "masks" / "b.png", values(square=1))
  if name != "a.png":
    write(src / "masks" / "a_2.png", values(square=1))
  if name == "a_cat.png":
    (src / "masks" / "a_2.png").rename(src / "masks" / "a_Cat2.png")
  write(src / "masks" / name, found)
  with pytest.raises(ValueError) as info:
    read(mask_images.read, src)
  assert message in str(info.value)
  found, _, problems = read(mask_images.read, src, skip=True)
  assert "b.jpg" in [entry.images[0].name for entry in found]
  assert len(problems.messages) == 1


@pytest.mark.parametrize(
  ("classes", "message"),
  [
    ("cat\ndog\n", 'line 1 names value 0, expected "background", or a value '),
    ("0 background\n", "classes.txt: names no class but background"),
    ("", "classes.txt: names no class but background"),
  ],
)
def test_bad_classes(classes, message, tmp_path):
  src = setting(tmp_path, classes)
  write(src / "masks" / "a.png", values(square=1))
  with pytest.raises(ValueError, match=message):
    read(mask_images.read, src)


def test_missing_files(tmp_path):
  src = setting(tmp_path)
  with pytest.raises(
    ValueError, match="no masks beside images, and no Segment"
  ):
    read(mask_images.read, src)
  write(src / "masks" / "a.png", values(square=1))
  (src / "classes.txt").unlink()
  with pytest.raises(
    ValueError, match=r"no classes\.txt, which names the valu"
  ):
    read(mask_images.read, src)
  (src / "labelmap.txt").write_text("cat 1,2,3\n")
  with pytest.raises(
    ValueError, match="expected cat:128,0,0::, found 'cat 1,2"
  ):
    read(mask_images.read, src)
  (src / "labelmap.txt").unlink()
  (src / "classes.txt").write_text("1 cat\n")
  path = src / "masks" / "a.png"
  path.write_bytes(b"GIF89a")
  with pytest.raises(ValueError, match=f"^{path}: not a readable image: 6 b"):
    read(mask_images.read, src)
  Image.new("L", SIZE[::-1]).save(path, "JPEG")
  with pytest.raises(
    ValueError, match=f"^{path}: the mask is in a format that"
  ):
    read(mask_images.read, src)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_masks_that_do_not_stand_upright(mode, tmp_path):
  """Mask and picture are turned each by its own orientation."""
  src = setting(tmp_path)
  found = Image.fromarray(values(square=1)).transpose(Image.Transpose.ROTATE_90)
  if mode == "P":
    found.putpalette([5, 5, 5, 255, 0, 0])
  elif mode == "RGB":
    found = found.convert("RGB")
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  (src / "masks").mkdir()
  found.save(src / "masks" / "a.png", exif=exif)
  assert found_in(src)[0] == {"a.jpg": [("cat", *SQUARE)]}


def test_folders_that_a_mac_adds(tmp_path):
  src = setting(tmp_path)
  write(src / "masks" / "a.png", values(square=1))
  for folder in ("masks", "images"):
    (src / "__MACOSX" / folder).mkdir(parents=True)
    (src / "__MACOSX" / folder / "._a.png").touch()
  assert found_in(src)[0] == {"a.jpg": [("cat", *SQUARE)]}
