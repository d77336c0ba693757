"""Makes the token stores that a command needs, in a child process.

Making token stores needs TensorFlow, which a process with a model never
imports.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from launch.later import Later
from tasks import modules

outdated = Later('tasks.outdated')


def prepare(
  wanted: Sequence[tuple[str, Sequence[str]]],
  cache_dir: str | os.PathLike,
  vocabulary: str | os.PathLike | None = None,
  vocab_size: int | None = None,
  task_modules: Sequence[str] = (),
  ranges: Mapping[str, int] | None = None,
) -> str:
  """Makes token stores that are missing or out of date.

  The child process calls `tasks.stores.prepare`. If several hosts share
  `cache_dir`, the child process of one host makes a store, and the others wait.

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
