"""Runs lm-evaluation-harness on our model: python -m launch.harness run ...

  run --model wudao --model_args checkpoint=runs/poems --tasks wsc273
  run --model wudao --model_args checkpoint=runs/poems --include_path my_tasks
    --tasks my_task

All flags are those of `lm_eval`, which the extra `interop` installs.
"""

import importlib.util
import sys
from collections.abc import Sequence

from launch import runtime
from launch.later import Later

harness_model = Later('launch.benchmarks.harness_model')


def main(argv: Sequence[str] | None = None) -> int:
  """Registers the model `wudao`, then runs the command of the harness."""
  words = list(sys.argv[1:] if argv is None else argv)
  if words in (['-h'], ['--help']):
    print(f'usage: python -m launch.harness FLAG...\n\n{__doc__}')
    return 0
  # `runtime.run` is not used here, since it replaces Python's handling of
  # signals, and the harness ends its own child processes with SIGTERM.
  with runtime.show_log():
    try:
      return evaluate(words)
    except (ValueError, OSError) as error:
      runtime.log(f'error: {" ".join(str(error).split())}')
      return runtime.EXIT_USER


def evaluate(words: Sequence[str]) -> int:
  """Runs the harness with these command-line words.

  Raises:
    ValueError: if the harness is not installed.
  """
  if not importlib.util.find_spec('lm_eval'):
    raise ValueError(
      'lm_eval must be installed, got none: pip install "wudao-moe[interop]".'
    )
  # Imported here, since the harness takes seconds to import and may be missing.
  import lm_eval.__main__
  from lm_eval.api import registry

  registry.register_model('wudao')(harness_model.Wudao)
  sys.argv[1:] = words
  lm_eval.__main__.cli_evaluate()
  return 0


if __name__ == '__main__':
  sys.exit(main())
