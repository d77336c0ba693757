"""Scores of an image tokenizer: quality of its pictures, and use of its codes.

The pictures are decoded from the codes of the originals.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.evaluate import comparison
from moe.evaluate.score import Score
from moe.objectives import image_codes

_CHUNK = 256


class Reconstruction(NamedTuple):
  """Pictures, their codes, and the pictures decoded from these codes.

  Attributes:
    pictures: uint8 [N, Y, X, 3], the original pictures.
    made: uint8 [N, Y, X, 3], the pictures decoded from `codes`.
    codes: int32 [N, codes], the codes of `pictures`.
    codes_again: int32 [N, codes], the codes of `made`.
  """

  pictures: np.ndarray
  made: np.ndarray
  codes: np.ndarray
  codes_again: np.ndarray


def reconstruct(
  pictures: np.ndarray,
  encode: Callable[[np.ndarray], np.ndarray],
  decode: Callable[[np.ndarray], np.ndarray],
) -> Reconstruction:
  """Encodes pictures, decodes their codes, and encodes the result again.

  Args:
    pictures: uint8 [N, Y, X, 3].
    encode: pictures -> codes.
    decode: codes -> pictures.
  """
  codes = encode(pictures)
  made = decode(codes)
  return Reconstruction(pictures, made, codes, encode(made))


def scores(
  found: Reconstruction, num_codes: int, name: str, command: str
) -> list[Score]:
  """Scores of a reconstruction.

  Args:
    found: the pictures and their reconstructions.
    num_codes: number of codes that the tokenizer has.
    name: name of the pictures; the name of each score begins with it.
    command: the command that gives the same numbers again.

  Returns:
    - PSNR in three ways: the mean over pictures, the PSNR of the mean squared
      error of all pictures, and the PSNR of the foreground alone. A plain
      background is easy to decode, so it raises the first two.
    - SSIM.
    - The share of codes that occur, and the perplexity of the codes.
    - The share of codes that stay the same if the decoded picture is encoded
      again.
  """
  psnr, ssim = _by_picture(found)
  error = np.square(
    (found.pictures.astype(np.float32) - found.made.astype(np.float32)) / 255
  ).mean(axis=-1)
  pixels = jnp.asarray(found.pictures, jnp.float32) / 255
  front = np.asarray(image_codes.foreground(pixels))
  usage = np.bincount(found.codes.ravel(), minlength=num_codes)
  share = usage / usage.sum()
  entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
  survived = np.mean(found.codes == found.codes_again, axis=1)
  n = len(found.pictures)
  decibels = lambda e: float(-10 * np.log10(max(e, 1e-10)))

  def single(what: str, value: float, unit: str) -> Score:
    return Score(f'{name}: {what}', value, None, None, n, command, unit, True)

  return [
    comparison.of_mean(f'{name}: PSNR', psnr, command, 'dB'),
    single('PSNR of the mean error', decibels(error.mean()), 'dB'),
    single(
      'PSNR of the foreground',
      decibels(error[front].mean() if front.any() else error.mean()),
      'dB',
    ),
    comparison.of_mean(f'{name}: SSIM', ssim, command, ''),
    single('codes used', float(np.mean(usage > 0)), f'share of {num_codes:,}'),
    single('perplexity of codes', float(np.exp(entropy)), 'codes'),
    comparison.of_mean(
      f'{name}: codes that survive', survived, command, 'share'
    ),
  ]


def _by_picture(found: Reconstruction) -> tuple[np.ndarray, np.ndarray]:
  """(PSNR, SSIM) of the pictures; each is [N]."""
  import dm_pix  # Only this function needs it.

  psnr, ssim = [], []
  side = min(found.pictures.shape[1:3])
  # The window of SSIM must have an odd size and fit into the picture.
  window = min(11, side - 1 + side % 2)
  for first in range(0, len(found.pictures), _CHUNK):
    there, back = (
      jnp.asarray(array[first : first + _CHUNK], jnp.float32) / 255
      for array in (found.pictures, found.made)
    )
    psnr.append(np.asarray(image_codes.decibels(back, there)))
    # dm-pix mixes integers and floats, which strict promotion forbids.
    with jax.numpy_dtype_promotion('standard'):
      similar = dm_pix.ssim(there, back, filter_size=window)
    ssim.append(np.asarray(similar))
  return np.concatenate(psnr), np.concatenate(ssim)
