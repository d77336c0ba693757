"""Documents to score: of text, and of records of a token store."""

from collections.abc import Sequence

import numpy as np

from moe.evaluate.likelihood import Document


def read_texts(path: str) -> list[str]:
  """Documents of a text file.

  Raises:
    ValueError: if it is missing, empty or no UTF-8, with the line number.
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
    if text:
      texts.append(text.replace('\\n', '\n'))
  if not texts:
    raise ValueError(f'{path} must hold at least one document, got none.')
  return texts


def text_documents(vocabulary, texts: Sequence[str]) -> list:
  """Texts as documents to score, unknown tokens and what they hide counted.

  Raises:
    ValueError: if the vocabulary alters a text: its bits would be another's.
  """
  documents = []
  for number, text in enumerate(texts, start=1):
    ids = vocabulary.encode(text)
    known = [i for i in ids if i != vocabulary.unk]
    num_unknown = len(ids) - len(known)
    if not num_unknown and vocabulary.decode(ids) != text:
      raise ValueError(
        f'the vocabulary must give every text back as it is, document {number} '
        f'({text[:20]!r}...) comes back changed: score it with a checkpoint '
        'whose vocabulary does not normalise.'
      )
    documents.append(
      Document(
        np.array([*ids, vocabulary.eos], np.int32),
        len(text),
        len(text.encode()),
        num_unknown=num_unknown,
        hidden_chars=len(text) - len(vocabulary.decode(known)),
      )
    )
  return documents


def record_document(vocabulary, record: dict):
  """A record of a token store as a document to score."""
  tokens, weights = record['tokens'], record.get('loss_weights')
  scored = tokens if weights is None else tokens[weights > 0]
  known = scored[scored != vocabulary.unk].tolist()
  chars = int(record['num_chars'])
  return Document(
    tokens.astype(np.int32),
    chars,
    int(record['num_bytes']),
    weights,
    num_unknown=len(scored) - len(known),
    hidden_chars=chars - len(vocabulary.decode(known)),
  )
