"""Writes draw_box.npz with TensorFlow, whose op widgetcap was trained with.

Run by hand, never by the tests, in an environment of its own:

    pip install tensorflow-cpu==2.21.0
    python tests/goldens/draw_box/make_draw_box.py

Random boxes, at the borders, beyond them and of no area, drawn in red on black
images of 11x17 pixels. The npz holds "boxes", relative, and "images".
"""

import pathlib

import numpy as np
import tensorflow as tf

PATH = pathlib.Path(__file__).parent / "draw_box.npz"
HEIGHT, WIDTH = 11, 17
SPECIAL = [
  (0, 0, 1, 1),
  (0, 0, 0, 0),
  (1, 1, 1, 1),
  (0.5, 0.5, 0.5, 0.5),
  (0.3, 0.2, 0.3, 0.9),
  (-0.2, 0.1, 0.4, 1.3),
  (-0.01, -0.01, 1.01, 1.01),
  (0.2, 0.2, 1.2, 0.6),
]


def main():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.random((40, 2, 2)), axis=1).reshape(-1, 4)
  boxes = np.concatenate([SPECIAL, corners]).astype(np.float32)
  drawn = tf.image.draw_bounding_boxes(
    tf.zeros((len(boxes), HEIGHT, WIDTH, 3)),
    boxes[:, None],
    tf.constant([[255.0, 0.0, 0.0]]),
  )
  images = drawn.numpy().astype(np.uint8)
  np.savez_compressed(PATH, boxes=boxes, images=images)


if __name__ == "__main__":
  main()
