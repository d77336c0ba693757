"""Reconstructs held-out pictures with a trained image tokenizer."""

from collections.abc import Mapping

import numpy as np

from moe.data.pictures import picture_batches
from moe.data.store import Store
from moe.evaluate import reconstruction
from moe.evaluate.reconstruction import Reconstruction
from moe.evaluate.score import Score
from moe.runs.image_tokenizer import ImageTokenizer

# More pictures would not fit in the memory of a small machine.
MAX_PICTURES = 4096


def report(
  tokenizer: ImageTokenizer,
  stores: Mapping[str, Mapping[str, str]],
  command: str,
) -> tuple[dict[str, Reconstruction], list[Score]]:
  """Reconstructs and scores held-out pictures.

  Args:
    tokenizer: the frozen tokenizer.
    stores: name of the pictures -> split -> directory of a store. All splits
      except 'train' are held out. The first `MAX_PICTURES` pictures of each
      split are read.
    command: the command that gives the same numbers again.

  Returns:
    (name -> reconstruction, scores of all reconstructions). A name is the name
    of the pictures, followed by the split if it is not 'validation'.
  """
  held_out = {
    name if split == 'validation' else f'{name}_{split}': Store(directory)
    for name, by_split in stores.items()
    for split, directory in by_split.items()
    if split != 'train'
  }
  found, scores = {}, []
  for name, store in held_out.items():
    pictures = first_pictures(store, tokenizer.pixels, MAX_PICTURES)
    found[name] = reconstruction.reconstruct(
      pictures, tokenizer.encode, tokenizer.decode
    )
    scores += reconstruction.scores(
      found[name], tokenizer.num_codes, name, command
    )
  return found, scores


def first_pictures(store: Store, pixels: int, limit: int) -> np.ndarray:
  """Reads the first pictures of a store, uint8 [N, pixels, pixels, 3]."""
  parts, count = [], 0
  for batch in picture_batches(store, 256, (pixels, pixels)):
    parts.append(batch['pictures'][batch['weights'] > 0])
    count += len(parts[-1])
    if count >= limit:
      break
  return np.concatenate(parts)[:limit]
