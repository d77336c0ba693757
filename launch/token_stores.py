"""Makes the stores that a verb needs.

Making token stores needs TensorFlow, which a process with a model never
imports. So a child process makes them.
"""

import glob
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tasks import modules


def prepare(
  wanted: Sequence[tuple[str, Sequence[str]]],
  cache_dir: str | os.PathLike,
  vocabulary: str | os.PathLike | None = None,
  vocab_size: int | None = None,
  task_modules: Sequence[str] = (),
  ranges: Mapping[str, int] | None = None,
) -> str:
  """Makes token stores that are missing or out of date.

  One process makes a store, with `tasks.stores.prepare`. The processes on other
  hosts wait until the store is there.

  Args:
    wanted: (task or mixture, its splits) pairs.
    cache_dir: directory of all token stores.
    vocabulary: file of the vocabulary to tokenise with.
    vocab_size: number of pieces of the vocabulary. If no file is given, a
      vocabulary of this size is trained on the first task.
    task_modules: modules or files of a user that declare tasks.
    ranges: name -> size of each id range that follows the text range.

  Returns:
    The vocabulary's directory. `moe.data.store.find_stores` finds the stores
    there.

  Raises:
    SystemExit: if a store cannot be made.
    ValueError: if the vocabulary cannot be used, or if a module is missing.
  """
  # Here, since it imports NumPy, and --help must answer at once.
  from tasks import outdated

  modules.locate(task_modules)
  size = vocab_size if vocabulary is None else None
  directory = outdated.vocabulary_directory(
    wanted[0][0], cache_dir, vocabulary, size, ranges
  )
  if not outdated.is_prepared(directory, wanted, size):
    flag = f'--vocab_size={size}' if size else f'--vocabulary={vocabulary}'
    command = [sys.executable, '-m', 'launch.data', 'cache', flag]
    command += [f'--cache_dir={cache_dir}']
    command += [f'--task_module={module}' for module in task_modules]
    command += [f'--range={name}={n}' for name, n in (ranges or {}).items()]
    for task, splits in wanted:
      command += [f'{task}/{split}' for split in splits]
    made = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if made.returncode:
      sys.exit(made.returncode)  # The child has printed the reason.
  return directory


def prepare_pictures(
  names: Sequence[str], pixels: int, cache_dir: str | os.PathLike
) -> dict[str, dict[str, str]]:
  """Makes missing picture stores; see `tasks.pictures.stores.prepare`.

  This needs no TensorFlow, so no child process is needed.
  """
  # Here, since it imports NumPy, and --help must answer at once.
  from tasks.pictures import stores

  return stores.prepare(names, pixels, cache_dir)


def read_picture(path: str, size: int) -> Any:
  """Reads a picture file as uint8 [size, size, 3]; see `decoding.read`."""
  # Here, since it imports NumPy, and --help must answer at once.
  from tasks.pictures import decoding

  return decoding.read(path, size)


def prepare_chains(
  names: Sequence[str], longest: int, cache_dir: str | os.PathLike
) -> dict[str, dict[str, str]]:
  """Makes missing stores of protein chains; see `tasks.proteins.prepare`."""
  # Here, since it imports NumPy, and --help must answer at once.
  from tasks import proteins

  return proteins.prepare(names, longest, cache_dir)


def check_tasks(
  names: Sequence[str],
  cache_dir: str | os.PathLike,
  task_modules: Sequence[str] = (),
  is_dry_run: bool = False,
) -> None:
  """Checks the names of tasks at once, before a model is made or read.

  Args:
    names: tasks and mixtures. A name that has a store need not be declared.
    cache_dir: directory of all token stores.
    task_modules: modules or files of a user. They may import TensorFlow, so
      only a dry run imports them here. Otherwise the child process that makes
      the stores checks the names.
    is_dry_run: whether this process only checks the configuration.

  Raises:
    ValueError: if there is no such task, mixture or module.
  """
  modules.load(task_modules if is_dry_run else ())
  if is_dry_run or not modules.locate(task_modules):
    for name in names:
      place = os.path.join(glob.escape(cache_dir), '*', glob.escape(name))
      if not glob.glob(place):
        modules.check_declared(name)
