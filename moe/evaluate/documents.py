"""Makes documents for scoring, from texts or from records of a token store."""

from collections.abc import Sequence

import numpy as np

from moe.data.store import Record
from moe.evaluate.likelihood import Document
from moe.modalities.ids import IdSpace
from moe.modalities.text import Vocabulary
from moe.types import Extra


def text_documents(
  vocabulary: Vocabulary, texts: Sequence[str], extras: Sequence[Extra] = ()
) -> list[Document]:
  """Makes a document for scoring from each text.

  A document has the number of its unknown tokens, and of the characters that
  they hide. The `extras` of text tokens are 0.

  Raises:
    ValueError: if the vocabulary alters a text without unknown tokens, since
      the score would then belong to another text.
  """
  documents = []
  for number, text in enumerate(texts, start=1):
    ids = vocabulary.encode(text)
    known = [i for i in ids if i != vocabulary.unk]
    num_unknown = len(ids) - len(known)
    if not num_unknown and vocabulary.decode(ids) != text:
      raise ValueError(
        f'the vocabulary must give every text back as it is, got document '
        f'{number} ({text[:20]!r}...) changed: score it with a checkpoint '
        'whose vocabulary does not normalise.'
      )
    documents.append(
      Document(
        np.array([*ids, vocabulary.eos], np.int32),
        len(text),
        len(text.encode()),
        num_unknown=num_unknown,
        hidden_chars=len(text) - len(vocabulary.decode(known)),
        extras=_extras_of({}, len(ids) + 1, extras),
      )
    )
  return documents


def record_document(
  vocabulary: Vocabulary,
  ids: IdSpace,
  record: Record,
  extras: Sequence[Extra] = (),
) -> Document:
  """Makes a document for scoring from a record of a token store.

  Args:
    vocabulary: vocabulary of the text.
    ids: the id space, which says where each id range begins.
    record: a record of the store.
    extras: further arrays with a value for each token, which the model reads.
      An array that the store lacks is 0.

  Raises:
    ValueError: if tokens of a block are scored, since they attend to each other
      and so have no likelihood; or if an array of `extras` has a wrong shape.
  """
  tokens, weights = record['tokens'], record.get('loss_weights')
  is_scored = slice(None) if weights is None else weights > 0
  scored, blocks = tokens[is_scored], record.get('block_ids')
  text = ids.codes('text', scored)
  known = text[text != vocabulary.unk].tolist()
  # An id outside the range of text, such as an image code, counts as one
  # character.
  chars = int(record['num_chars'])
  text_chars = chars - (len(scored) - len(text))
  if blocks is not None and blocks[is_scored].any():
    raise ValueError(
      'A document must be scored token by token, got a block that is to be'
      ' predicted: score it by the evaluation of its run, which hides tokens.'
    )
  return Document(
    tokens.astype(np.int32),
    chars,
    int(record['num_bytes']),
    weights,
    num_unknown=len(text) - len(known),
    hidden_chars=text_chars - len(vocabulary.decode(known)),
    block_ids=blocks,
    modality=None if ids.is_text else ids.modality(tokens.astype(np.int32)),
    extras=_extras_of(record, len(tokens), extras),
  )


def record_text(vocabulary: Vocabulary, ids: IdSpace, record: Record) -> str:
  """The text of a record; ids that are not text are left out."""
  return vocabulary.decode(ids.codes('text', record['tokens']).tolist())


def _extras_of(
  record: Record, size: int, extras: Sequence[Extra]
) -> dict[str, np.ndarray]:
  """The extras of a document with `size` tokens."""
  found = {}
  for extra in extras:
    values = record.get(extra.name, np.zeros((size, *extra.shape)))
    if values.shape != (size, *extra.shape):
      raise ValueError(
        f'{extra.name} of a document must have shape {(size, *extra.shape)},'
        f' got {values.shape}: make the store again.'
      )
    found[extra.name] = values.astype(extra.dtype)
  return found
