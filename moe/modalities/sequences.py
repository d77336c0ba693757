"""Reads sequences of residues that users give, alone or as FASTA."""

import pathlib
import re

# Letters that do not name one of the twenty standard amino acids. Each is read
# as an unknown residue.
_UNKNOWN = 'XBZJUO'
# The first twenty letters are those of `moe.modalities.residues`. That module
# imports NumPy, which takes time, so we do not import it here.
_ALLOWED = set('ACDEFGHIKLMNPQRSTVWY' + _UNKNOWN)


def cleaned(sequence: str, name: str = 'the sequence') -> str:
  """A sequence in capital letters, without spaces, gaps and a last stop mark.

  Lower-case letters count as capitals. Spaces, line ends and the gaps '-' and
  '.' of an alignment are dropped, and so is '*' at the end. X, B, Z, J, U and O
  are read as an unknown residue.

  Args:
    sequence: the sequence as the user gave it.
    name: name of the sequence in messages.

  Raises:
    ValueError: if no residue is left, or if a letter is no residue.
  """
  found = re.sub(r'[\s.-]', '', sequence).upper().removesuffix('*')
  if '*' in found:
    raise ValueError(
      f"{name} must be one chain, got a stop mark '*' at residue"
      f' {found.index("*") + 1}: cut it there.'
    )
  wrong = sorted(set(found) - _ALLOWED)
  if wrong:
    place = min(found.index(letter) for letter in wrong)
    raise ValueError(
      f'{name} must hold one-letter names of amino acids, got'
      f' {", ".join(map(repr, wrong))}, first at residue {place + 1}: correct'
      ' it, or write X for an unknown residue.'
    )
  if not found:
    raise ValueError(f'{name} must have at least one residue, got none.')
  return re.sub(f'[{_UNKNOWN}]', 'X', found)


def of_fasta(text: str) -> dict[str, str]:
  """Reads a text in FASTA format, with line ends of any kind.

  Args:
    text: lines that begin with '>' name a sequence; the others hold it.

  Returns:
    Name -> sequence.

  Raises:
    ValueError: if the text is not in FASTA format, or a sequence is wrong.
  """
  parts = {}
  name = None
  for line in text.lstrip('\ufeff').splitlines():
    if line.startswith('>'):
      name = re.sub(r'[^\w.-]', '_', (line[1:].split() or ['chain'])[0])
      while name in parts:
        name += '_'
      parts[name] = []
    elif line.strip() and name is None:
      raise ValueError(
        "A FASTA file must begin with '>' and a name, got"
        f' {line[:20]!r}: add such a line before each sequence.'
      )
    elif name is not None:
      parts[name].append(line)
  if not parts:
    raise ValueError('A FASTA file must hold a sequence, got none.')
  return {
    name: cleaned(''.join(lines), f'the sequence {name!r}')
    for name, lines in parts.items()
  }


def read_fasta(path: str, name: str) -> dict[str, str]:
  """Name -> sequence of a file in FASTA format, as in `of_fasta`.

  Args:
    path: the file.
    name: name of the file in messages, such as '--fasta'.

  Raises:
    ValueError: if there is no such file, if it is not UTF-8, or as in
      `of_fasta`.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f'{name}={path} must be a file, got none there.')
  try:
    text = pathlib.Path(path).read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{name}={path} must be text in UTF-8, got byte {error.start + 1} of'
      ' another encoding: save it as UTF-8.'
    ) from error
  return of_fasta(text)
