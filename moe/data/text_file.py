r"""A text file with one document per line; \n stands for a line break in it."""

import re


def unescaped(text: str) -> str:
  r"""The text that is meant: \n is a line break, \\ is one backslash.

  A backslash before any other character stands for itself.
  """
  return re.sub(r'\\([\\n])', lambda m: '\n' if m[1] == 'n' else '\\', text)


def read_texts(path: str) -> list[str]:
  """Documents of a text file.

  Raises:
    ValueError: if it is missing, empty or not UTF-8, with the line number.
  """
  try:
    with open(path, 'rb') as f:
      lines = f.read().removeprefix(b'\xef\xbb\xbf').split(b'\n')
  except OSError as error:
    raise ValueError(
      f'--text_file={path} must be a file to read: {error.strerror}.'
    ) from error
  texts = []
  for number, line in enumerate(lines, start=1):
    try:
      text = line.removesuffix(b'\r').decode()
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{path}:{number}: a text file must be UTF-8, got byte '
        f'{line[error.start]:#04x} at place {error.start + 1} of the line: '
        'convert the file first.'
      ) from error
    if text.strip():
      texts.append(unescaped(text))
  if not texts:
    raise ValueError(f'{path} must hold at least one document, got none.')
  return texts
