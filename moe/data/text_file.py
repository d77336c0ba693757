"""Text files: one document per line, or one JSON object per line."""

import gzip
import lzma
import os
import re
from typing import Any

from moe import json_text

# End of the name of a compressed file -> the function that opens the file.
OPENERS = {'.gz': gzip.open, '.xz': lzma.open}


def unescaped(text: str) -> str:
  r"""Replaces escapes in a text: \n by a line break, \\ by one backslash.

  A backslash before any other character stands for itself.
  """
  return re.sub(r'\\([\\n])', lambda m: '\n' if m[1] == 'n' else '\\', text)


def read_texts(path: str) -> list[str]:
  r"""Reads a text file with a document per line; \n stands for a line break.

  Raises:
    ValueError: if the file is missing, empty or not UTF-8; the message names
      the first line that is not UTF-8.
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


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads a file with one JSON object per line.

  Args:
    path: path of the file; if it ends in `.gz` or `.xz`, the file is
      decompressed.

  Raises:
    ValueError: if a line is not JSON, or if the file is cut short.
    OSError: if the file cannot be opened.
  """
  opener = OPENERS.get(os.path.splitext(path)[1], open)
  try:
    with opener(path, 'rt', encoding='utf-8') as f:
      return [json_text.parse(line) for line in f if line.strip()]
  except (ValueError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
    raise ValueError(
      f'{path} must hold one JSON object per line, got {error}: get the file'
      ' again.'
    ) from error
