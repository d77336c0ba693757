"""Command-line flags that several commands have."""

import argparse
import sys
from collections.abc import Callable, Sequence

from launch.later import Later

safety = Later('launch.configs.safety')

_BINDING = '--gin.'


def add_verbs(
  parser: argparse.ArgumentParser,
) -> Callable[[str, str], argparse.ArgumentParser]:
  """Adds subcommands (verbs); `args.verb` is the one that the user has chosen.

  Returns:
    A function that adds a verb: (its name, what it does) -> its parser.
  """
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  return lambda name, text: verbs.add_parser(
    name, help=text, description=text, allow_abbrev=False
  )


def add_gin_flags(parser: argparse.ArgumentParser, **options) -> None:
  """Adds --gin_file, and a line about --gin.NAME=VALUE to the help.

  Args:
    parser: the parser of the command.
    **options: options of `add_argument` for --gin_file, such as `required`.
  """
  parser.add_argument(
    '--gin_file',
    action='append',
    metavar='FILE',
    **{
      'help': 'gin file, here or in gin_configs; may be given several times',
      **options,
    },
  )
  parser.add_argument(
    '--gin.NAME=VALUE',
    dest='override',
    help='binds a macro or a parameter; text in quotes: --gin.TASK="\'ci\'"',
  )


def add_checkpoint_flag(
  parser: argparse.ArgumentParser,
  text: str = 'work directory of a run, or one step in its checkpoints; for a'
  ' run, the best step if one is recorded, else the latest',
) -> None:
  """Adds the required flag --checkpoint, or --untrusted in its place.

  Args:
    parser: the parser of the command.
    text: the help of --checkpoint.
  """
  given = parser.add_mutually_exclusive_group(required=True)
  given.add_argument('--checkpoint', metavar='DIR', help=text)
  given.add_argument(
    '--untrusted',
    dest='checkpoint',
    type=lambda directory: safety.checkpoint(directory),  # Imported later.
    metavar='DIR',
    help='the same, if DIR comes from a stranger: it is checked, then read',
  )


def add_folding_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --checkpoint, --recycles and --memory of a folding model."""
  text = 'work directory of a run that trained a folding model'
  add_checkpoint_flag(parser, text)
  add = parser.add_argument
  text = 'how often a result is read again; default: RECYCLES of the run'
  add('--recycles', type=int, help=text)
  add('--memory', type=float, default=8.0, help='GB that a chain may need')


def add_task_module_flag(parser: argparse.ArgumentParser) -> None:
  """Adds the flag --task_module, a list that is empty by default."""
  parser.add_argument(
    '--task_module',
    action='append',
    default=[],
    metavar='MODULE_OR_FILE',
    help='a Python module or file that declares tasks with tasks.registry; '
    'may be given several times',
  )


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  """Parses a command line into (flags, NAME=VALUE texts of --gin. flags).

  Args:
    parser: the parser of the command. It does not see the --gin. flags.
    argv: words of the command line, by default those of this process.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  bound = [a.removeprefix(_BINDING) for a in argv if a.startswith(_BINDING)]
  rest = [a for a in argv if not a.startswith(_BINDING)]
  return parser.parse_args(rest), bound
