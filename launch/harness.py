"""lm-evaluation-harness with our model: python -m launch.harness run ...

  run --model wudao --model_args checkpoint=runs/poems --tasks wsc273
  run --model wudao --model_args checkpoint=runs/poems --include_path my_tasks
    --tasks my_task

All flags are those of `lm_eval`, which the extra `interop` installs.
"""

import importlib.util
import sys
from collections.abc import Sequence

from launch import runtime


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the harness's command after it has learnt the model `wudao`."""
  words = list(sys.argv[1:] if argv is None else argv)
  if words in (['-h'], ['--help']):
    print(f'usage: python -m launch.harness FLAG...\n\n{__doc__}')
    return 0
  # The harness ends its own child processes with SIGTERM, so it keeps Python's
  # handling of signals, which `runtime.run` would replace.
  with runtime.show_log():
    try:
      return evaluate(words)
    except (ValueError, OSError) as error:
      runtime.log(f'error: {" ".join(str(error).split())}')
      return runtime.EXIT_USER


def evaluate(words: Sequence[str]) -> int:
  """Hands the flags to the harness.

  Raises:
    ValueError: if the harness is not installed.
  """
  if not importlib.util.find_spec('lm_eval'):
    raise ValueError(
      'lm_eval must be installed, got none: pip install "wudao-moe[interop]".'
    )
  # Here, since the harness takes seconds to import and is an extra.
  import lm_eval.__main__

  # Here, since it imports the harness; the import registers the model.
  from launch import harness_model  # noqa: F401

  sys.argv[1:] = words
  lm_eval.__main__.cli_evaluate()
  return 0


if __name__ == '__main__':
  sys.exit(main())
