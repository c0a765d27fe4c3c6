"""Views of images for self-distillation, and its loss, always in float32.

The views are made on the devices, from the pixels that the model reads.

Sources: arXiv:2502.14786 section 2.3 (SigLIP 2): one global view, eight local
ones, half of the patches hidden; arXiv:2310.13355 (SILC): the shares of the
image that views show; arXiv:2104.14294 (DINO): the loss and its temperatures.

Axes: B images, V local views, H height, W width in pixels, L patches, Q
prototypes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

LOCAL_VIEWS = 8
_LOCAL, _GLOBAL = (0.05, 0.4), (0.4, 1.0)  # shares of the area of an image
_STUDENT, _TEACHER = 0.1, 0.04  # temperatures

Views = dict[str, Array]


def local_size(res: int, patch_size: int) -> int:
  """Returns the side of a local view: 3/7 of the image, as 96 of 224 pixels."""
  return max(round(3 * res / 7 / patch_size), 1) * patch_size


def draw(rng: PRNGKeyArray, batch: int, patches: int) -> Views:
  """Draws what the views of a batch show, the global one first.

  Returns:
    "box" float32[B, 1 + V, 4], (y, x, height, width) in shares of the image;
    "flip" bool[B, 1 + V]; "colour" float32[B, 1 + V, 3], what is added to the
    pixels, and factors of their contrast and their saturation; "hidden" bool[B,
    L], half of the patches.
  """
  keys = jax.random.split(rng, 5)
  shape = batch, 1 + LOCAL_VIEWS
  low, high = (
    jnp.array([of_global] + [of_local] * LOCAL_VIEWS)[None]
    for of_global, of_local in zip(_GLOBAL, _LOCAL, strict=True)
  )
  area = low + (high - low) * jax.random.uniform(keys[0], shape)
  ratio = jax.random.uniform(keys[1], shape, minval=-1.0) * jnp.log(4 / 3) / 2
  sides = jnp.sqrt(area)[..., None] * jnp.exp(jnp.stack([ratio, -ratio], -1))
  sides = jnp.minimum(sides, 1.0)
  corner = jax.random.uniform(keys[2], (*shape, 2)) * (1 - sides)
  colour = jax.random.uniform(keys[3], (*shape, 4), minval=-0.4, maxval=0.4)
  order = jax.random.uniform(keys[4], (batch, patches))
  rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
  return {
    "box": jnp.concatenate([corner, sides], axis=-1),
    "flip": colour[..., 3] > 0,
    "colour": colour[..., :3] + jnp.array([0.0, 1.0, 1.0])[None, None],
    "hidden": rank < patches // 2,
  }


def crop(
  images: Float[Array, "B H W 3"],
  box: Float[Array, "B V 4"],
  flip: Bool[Array, "B V"],
  colour: Float[Array, "B V 3"],
  size: int,
) -> Float[Array, "B*V S S 3"]:
  """Cuts views of `size` pixels a side out of images; see `draw`."""
  pixels = jnp.array(images.shape[1:3], jnp.float32)

  def one(image, box, flip, colour):
    corner, sides = box[:2] * pixels, box[2:] * pixels
    scale = size / sides
    view = jax.image.scale_and_translate(
      image, (size, size, 3), (0, 1), scale, -corner * scale, "linear"
    )
    view = jnp.where(flip, view[:, ::-1], view)
    mean = view.mean(axis=(0, 1, 2), keepdims=True)
    view = mean + colour[1] * (view - mean) + colour[0]
    gray = view.mean(axis=2, keepdims=True)
    return jnp.clip(gray + colour[2] * (view - gray), -1, 1)

  views = jax.vmap(jax.vmap(one, (None, 0, 0, 0)))(images, box, flip, colour)
  return views.reshape(-1, size, size, 3)


def consistency(
  student: Float[Array, "*B Q"],
  teacher: Float[Array, "*B Q"],
  center: Float[Array, " Q"],
) -> Float[Array, "*B"]:
  """Returns the cross entropy of a student's prototypes to a teacher's.

  The teacher's cosines are centred and sharpened, so that views of all images
  match neither one prototype nor all alike. They have no gradient.

  Args:
    student, teacher: Cosines to the prototypes.
    center: The mean of the teacher's, over many batches.
  """
  center = jnp.expand_dims(center, range(teacher.ndim - 1))
  wanted = jax.nn.softmax((teacher - center) / _TEACHER)
  found = jax.nn.log_softmax(student / _STUDENT)
  return -jnp.sum(jax.lax.stop_gradient(wanted) * found, axis=-1)
