"""Token stores that a verb needs, made in a child process if they are missing.

Making them takes TensorFlow, which no process with a model imports.
"""

import os
import subprocess
import sys
from collections.abc import Sequence


def prepare(
  wanted: Sequence[tuple[str, Sequence[str]]],
  cache_dir: str | os.PathLike,
  vocabulary: str | os.PathLike | None = None,
  vocab_size: int | None = None,
) -> str:
  """Makes what is missing or out of date, as `tasks.stores.prepare` does.

  The processes of other hosts find it made, or wait for it.

  Args:
    wanted: (task or mixture, its splits) pairs.
    cache_dir: of all token stores.
    vocabulary: file to tokenise with.
    vocab_size: pieces of one to be trained on the first task, if no file is
      given.

  Returns:
    The vocabulary directory; `moe.data.store.find_stores` finds stores in it.

  Raises:
    SystemExit: if something can't be made.
    ValueError: if the vocabulary is not fit.
  """
  # Imported here, since verbs import this file and --help must answer at once.
  from tasks import outdated

  size = vocab_size if vocabulary is None else None
  directory = outdated.vocabulary_directory(
    wanted[0][0], cache_dir, vocabulary, size
  )
  if not outdated.is_prepared(directory, wanted, size):
    flag = f'--vocab_size={size}' if size else f'--vocabulary={vocabulary}'
    command = [sys.executable, '-m', 'launch.data', 'cache', flag]
    command += [f'--cache_dir={cache_dir}']
    for task, splits in wanted:
      command += [f'{task}/{split}' for split in splits]
    made = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if made.returncode:
      sys.exit(made.returncode)  # The child has said why.
  return directory
