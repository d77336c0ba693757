"""Reads the bindings of gin files and of the command line.

gin's parser splits the files into statements. A name that does not exist raises
an error with the file, the line and perhaps a similar name.
"""

import dataclasses
import os
import pathlib
import re
import tokenize
import typing

from gin import config_parser
from gin.config_parser import ImportStatement

from launch.configs import gin_values
from launch.configs.names import Imports, Names, moved, nearest, parameters

_ROOT = str(pathlib.Path(__file__).parents[2])
SEARCH_PATHS = (
  '',
  os.path.join(_ROOT, 'gin_configs'),
  _ROOT,
)
# The first line of a configuration that a run has written. Such a file also has
# bindings that the run did not use, such as those of an optimizer that a later
# line replaced. So an unread binding in it is no error.
WRITTEN = '# The whole configuration of a run.\n'


class Delegate(config_parser.ParserDelegate):
  """Makes gin's parser return references and macros instead of their values."""

  def configurable_reference(
    self, scoped_configurable_name: str, evaluate: bool
  ) -> gin_values.Reference:
    """Returns the reference @name or @name()."""
    return gin_values.Reference(
      scoped_configurable_name.split('/')[-1], evaluate
    )

  def macro(self, macro_name: str) -> gin_values.Macro:
    """Returns the macro %NAME."""
    return gin_values.Macro(macro_name.split('/')[-1])


@dataclasses.dataclass(frozen=True)
class Binding:
  """One line 'target.argument = value', or 'NAME = value' for a macro.

  Attributes:
    target: the class or function; None for a macro.
    argument: an argument of the target, or the name of the macro.
    value: the value, with references and macros not yet replaced.
    place: the file and the line, or the flag.
    name: the target's name under the import statements of `Bound.imports`; ''
      for a macro.
    may_be_unread: whether it is no error if nothing reads the binding.
  """

  target: object
  argument: str
  value: object
  place: str
  name: str = ''
  may_be_unread: bool = False


class Bound(typing.NamedTuple):
  """All bindings of files and command line.

  Attributes:
    bindings: in the order in which they were read.
    imports: statements that import every name in the bindings.
  """

  bindings: list[Binding]
  imports: list[ImportStatement]


def find_file(name: str, including: str = '') -> str:
  """Finds a gin file beside the including file, or in `SEARCH_PATHS`.

  Args:
    name: path that the user or an include statement gives.
    including: the file with the include statement; '' if there is none.

  Raises:
    ValueError: if none of these folders has the file.
  """
  beside = [os.path.dirname(including)] if including else []
  for folder in (*beside, *SEARCH_PATHS):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  hint = nearest(name, _own_files())
  where = f'beside {including}, here' if including else 'here'
  raise ValueError(
    f"gin file '{name}' must exist {where} or in gin_configs{hint}"
  )


def files_that_define(macro: str) -> list[str]:
  """Files of gin_configs that bind this macro, as paths inside that folder."""
  line = re.compile(rf'^{re.escape(macro)}\s*=', re.MULTILINE)
  folder = pathlib.Path(SEARCH_PATHS[1])
  return [
    name
    for name in _own_files()
    if line.search((folder / name).read_text(encoding='utf-8'))
  ]


def _own_files() -> list[str]:
  """All files of gin_configs, as paths inside that folder."""
  folder = pathlib.Path(SEARCH_PATHS[1])
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*.gin'))


def read(files: list[str], command_line: list[str]) -> Bound:
  """All bindings of the files, then those of the command line, in their order.

  Raises:
    ValueError: for wrong syntax, a missing file, a name that does not exist, a
      scope, a file that includes itself, or a line that stands above an include
      statement which overrides it.
  """
  bindings, imports, everything = [], Imports(), Names()
  for name in files:
    _read_file(find_file(name), bindings, imports, everything, ())
  for text in command_line:
    place = f'--gin.{text}'
    if '=' not in text:
      raise ValueError(f'{place}: write --gin.NAME=VALUE.')
    for statement in _statements(text, place, None):
      _add_binding(statement, place, everything, bindings)
  return Bound(bindings, imports.sorted())


def _statements(source, name: str, path: str | None):
  try:
    return list(config_parser.ConfigParser(source, Delegate()))
  except RecursionError as error:
    raise ValueError(
      f'{path or name}: cannot be read as gin (brackets are nested too deep).'
    ) from error
  except (SyntaxError, tokenize.TokenError) as error:
    reason, location = error.args
    # A SyntaxError has (file, line, ...), a TokenError has (line, column).
    line = location[1 if isinstance(error, SyntaxError) else 0]
    where = f'{path}:{line}' if path else name
    token = re.search("Failed to parse token '(.*)'", reason)
    reason = f'{token.group(1)} is no value' if token else reason.rstrip('.')
    raise ValueError(
      f'{where}: cannot be read as gin ({reason})'
      f'{_quotes(token.group(1), bool(path)) if token else ""}.'
    ) from error


def _quotes(token: str, is_in_file: bool) -> str:
  """A hint to write quotes if a value is a word without them; '' otherwise."""
  if not re.match(r'[^\W\d]', token):
    return ''
  text = f"'{token}'" if is_in_file else f'\'"{token}"\''
  return f'; text values need quotes: NAME={text}'


def read_written(text: str, path: str) -> dict[str, object]:
  """Reads the values of a configuration that a run has written.

  No module that the file names is imported. If a module has moved since the
  file was written, its new path is used.

  Args:
    text: the configuration.
    path: the file, for error messages.

  Returns:
    key -> value. A key is the name of a macro or the full path of an argument,
    such as 'moe.runs.run.Data.train'. References have full paths as well.

  Raises:
    ValueError: if it cannot be read.
  """
  modules, values = {}, {}

  def full(name):
    first, dot, rest = name.partition('.')
    return modules.get(first, first) + dot + rest

  def with_full_name(reference):
    return dataclasses.replace(reference, name=full(reference.name))

  for statement in _statements(text, path, path):
    if isinstance(statement, ImportStatement):
      if statement.is_from or statement.alias:
        present = moved(statement)
        modules[statement.bound_name()] = present.module
    elif isinstance(statement, config_parser.BindingStatement):
      name = statement.selector
      if statement.arg_name:
        name = f'{full(name)}.{statement.arg_name}'
      values[name] = gin_values.map_references(with_full_name, statement.value)
  return values


def statements(path: str) -> list:
  """The statements of a gin file; nothing in it is imported or called.

  Raises:
    ValueError: if it cannot be read as gin.
  """
  return _statements(_text(path), path, path)


def _text(path: str) -> str:
  try:
    with open(path, encoding='utf-8') as f:
      return f.read()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: must be UTF-8 text ({error}).') from error


def _read_file(
  path: str,
  bindings: list[Binding],
  imports: Imports,
  everything: Names,
  including: tuple[str, ...],
) -> None:
  """Adds the bindings and names of a file and of the files that it includes."""
  if path in including:
    raise ValueError(f'{path}: includes itself.')
  names, text = Names(), _text(path)
  first, own = len(bindings), []
  for statement in _statements(text, path, path):
    place = f'{path}:{statement.location.line_num}'
    if isinstance(statement, ImportStatement):
      names.add(statement, imports, place)
      everything.modules.update(names.modules)
    elif isinstance(statement, config_parser.IncludeStatement):
      try:
        included = find_file(statement.filename, path)
      except ValueError as error:
        raise ValueError(f'{place}: {error}') from error
      begin = len(bindings)
      _read_file(included, bindings, imports, everything, (*including, path))
      _check_order(own, bindings[begin:], place)
    elif isinstance(statement, config_parser.BindingStatement):
      _add_binding(statement, place, names, bindings)
      own.append(bindings[-1])
  if text.startswith(WRITTEN):
    bindings[first:] = [
      dataclasses.replace(b, may_be_unread=True) for b in bindings[first:]
    ]


def _check_order(
  own: list[Binding], included: list[Binding], place: str
) -> None:
  """Raises ValueError if an include statement overrides a line above it.

  Args:
    own: bindings of the file above the include statement.
    included: bindings of the included file.
    place: file and line of the include statement.
  """
  last = {(id(b.target), b.argument): b for b in included}
  for b in own:
    after = last.get((id(b.target), b.argument))
    if after and after.value != b.value:
      name = f'{b.name}.{b.argument}' if b.name else b.argument
      raise ValueError(
        f"{b.place}: '{name}' must stand below the include of {place}, which"
        f' overrides it ({after.place}): move the line down.'
      )


def _add_binding(statement, place, names, bindings) -> None:
  value = names.resolve_value(statement.value, place)
  if statement.selector == 'gin.macro':
    bindings.append(Binding(None, statement.scope, value, place))
    return
  if statement.scope:
    raise ValueError(
      f"{place}: the scope '{statement.scope}/' is entered nowhere: bind"
      f" '{statement.selector}' without it."
    )
  if not statement.arg_name:
    bindings.append(Binding(None, statement.selector, value, place))
    return
  target, name = names.resolve(statement.selector, place)
  known = parameters(target)
  if statement.arg_name not in known:
    raise ValueError(
      f"{place}: '{statement.selector}' has no '{statement.arg_name}'"
      f'{nearest(statement.arg_name, known)}'
    )
  bindings.append(Binding(target, statement.arg_name, value, place, name))
