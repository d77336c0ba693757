"""Checkpoints of a run: python -m launch.checkpoint list|verify|show DIR.

DIR is the directory of a run, its `checkpoints`, or one step in there.
"""

import argparse
import json
import sys


def main(argv: list[str] | None = None) -> int:
  """Lists, verifies or shows; 1 if a file is damaged or there is none."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.checkpoint',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for verb, text in (
    ('list', 'steps, sizes, metrics, which one is the best'),
    ('verify', 'read every byte again; exit code 1 if one has changed'),
    ('show', 'what was recorded with a step'),
  ):
    sub = verbs.add_parser(verb, help=text, description=text)
    sub.add_argument('directory', metavar='DIR')
    if verb != 'list':
      which = 'all' if verb == 'verify' else 'the newest'
      sub.add_argument('--step', type=int, help=f'default: {which}')
  options = parser.parse_args(argv)
  # Slow to import, and nothing that --help or a typing error needs.
  from moe.checkpoint import restore

  try:
    directory, step = restore.locate(options.directory)
    if options.verb == 'list':
      return _list(directory)
    steps = restore.steps(directory)
    step = step if options.step is None else options.step
    if step is not None and step not in steps:
      raise ValueError(
        f'--step must be one of {steps} in {directory}, got {step}.'
      )
    if options.verb == 'verify':
      return _verify(directory, steps if step is None else [step])
    return _show(directory, steps[-1] if step is None else step)
  except ValueError as error:
    parser.exit(1, f'error: {error}\n')


def _list(directory) -> int:
  """One line a step."""
  from moe.checkpoint import integrity, restore

  steps = restore.steps(directory)
  metas = {step: restore.read_meta(directory / str(step)) for step in steps}
  best = restore.best_step(directory)
  print(f'{"step":>10} {"size":>10}  metrics')
  for step, meta in metas.items():
    numbers = (meta.get('metrics') or {}).items()
    remarks = [f'{name}={value:.4g}' for name, value in numbers]
    remarks += ['(best)'] if step == best else []
    if not meta:
      remarks = ['(damaged)']
    size = integrity.size(directory / str(step)) / 2**20
    print(f'{step:>10} {size:>6.1f} MiB  {" ".join(remarks)}'.rstrip())
  return 0


def _verify(directory, steps: list[int]) -> int:
  """Checks every file of the steps; 1 if one is damaged."""
  from moe.checkpoint import integrity

  code = 0
  for step in steps:
    problems = integrity.check(directory / str(step))
    if problems:
      code = 1
      for problem in problems:
        print(f'step {step}: {problem}', file=sys.stderr)
    else:
      print(f'step {step}: sound')
  return code


def _show(directory, step: int) -> int:
  """Prints what was recorded, texts of many lines at the end as they are."""
  from moe.checkpoint import restore

  meta = restore.read_meta(directory / str(step))
  texts = {
    key: meta.pop(key)
    for key, value in list(meta.items())
    if isinstance(value, str) and '\n' in value
  }
  print(json.dumps(meta, indent=2, ensure_ascii=False))
  for key, text in texts.items():
    print(f'\n{key}:\n{text.rstrip()}')
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
