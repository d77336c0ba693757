"""Reconstructs held-out pictures with a trained image tokenizer."""

from collections.abc import Mapping

from moe.data import pictures as pictures_lib
from moe.data.store import Store
from moe.evaluate import reconstruction
from moe.evaluate.reconstruction import Reconstruction
from moe.evaluate.score import Score
from moe.runs import picture_judge
from moe.runs.held_out_pictures import HeldOut, Mean, check_held_out, held_out
from moe.runs.image_tokenizer import ImageTokenizer

# More pictures would not fit in the memory of a small machine.
MAX_PICTURES = 4096


def report(
  tokenizer: ImageTokenizer,
  stores: Mapping[str, Mapping[str, str]],
  command: str,
  judge_epochs: int = 0,
  cache_dir: str = '',
) -> tuple[dict[str, Reconstruction], list[Score]]:
  """Reconstructs and scores held-out pictures.

  Args:
    tokenizer: the frozen tokenizer.
    stores: name of the pictures -> split -> directory of a store. The first
      `MAX_PICTURES` pictures of each held-out split are read.
    command: the command that gives the same numbers again.
    judge_epochs: least number of passes over the training pictures of a judge,
      a network that scores real and reconstructed pictures; 0 for no judge.
    cache_dir: directory of the judges; '' for none.

  Returns:
    (name -> reconstruction, scores of all reconstructions). A name is the name
    of the pictures, followed by the split if it is not 'validation'.

  Raises:
    ValueError: if a source has no held-out picture.
  """
  check_held_out(stores)
  found, scores = {}, []
  for source, by_split in stores.items():
    judge = None
    if judge_epochs:
      known = _held_out(source, Store(by_split['train']), tokenizer, None)
      judge = picture_judge.judge_of(by_split, known, judge_epochs, cache_dir)
    for label, directory in pictures_lib.held_out(source, by_split).items():
      name = label.replace(' ', '_')
      mine = _held_out(name, Store(directory), tokenizer, MAX_PICTURES)
      made = reconstruction.reconstruct(
        mine.pixels, tokenizer.encode, tokenizer.decode
      )
      found[name] = made
      scores += reconstruction.scores(made, tokenizer.num_codes, name, command)
      if judge:
        mean = Mean(name, command)
        scores += picture_judge.ceilings(mean, judge, mine, made.made)
  return found, scores


def _held_out(
  name: str, store: Store, tokenizer: ImageTokenizer, limit: int | None
) -> HeldOut:
  limit = limit or int(store.lengths.size)
  return held_out(name, store, tokenizer.pixels, limit)
