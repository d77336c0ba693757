"""Documents to score: of text, and of records of a token store."""

from collections.abc import Sequence

import numpy as np

from moe.data.store import Record
from moe.evaluate.likelihood import Document
from moe.modalities.vocabulary import Vocabulary


def text_documents(
  vocabulary: Vocabulary, texts: Sequence[str]
) -> list[Document]:
  """Texts as documents to score; unknown tokens and what they hide are counted.

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


def record_document(vocabulary: Vocabulary, record: Record) -> Document:
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
