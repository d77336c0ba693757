"""Compares languages by the bits per English character of translated sentences.

The score of a language is a ratio. The numerator is all bits that a model needs
for some sentences in this language. The denominator is the number of characters
of the same sentences in English. Since the sentences mean the same in every
language and the denominator is the same, languages can be compared whatever
their vocabulary and script (Mielke et al. 2019,
https://arxiv.org/abs/1906.04726; Goldfish, Chang et al. 2024,
https://arxiv.org/abs/2408.10441).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moe.evaluate import comparison, score

BITS_PER_ENGLISH_CHAR = 'bits per English character'
ENGLISH = 'English'
# This text says why two languages can be compared, and what the scores hide.
EXPLANATION = (
  'Each row divides all bits of one language by the same number: the characters'
  ' of the English sentences.',
  'The sentences of a set say the same in every language, so equal numbers mean'
  ' that the same content costs equally many bits.',
  'Tokens, bytes and characters of the language itself are not counted, so no'
  ' vocabulary and no script has an advantage.',
  'The scale does not show which side was written first, how freely the other'
  ' one translates it, and what the sentences are about.',
  'It does not show either how much text of each language the model has read:'
  ' the gap between two languages belongs to this model, not to the languages.',
)


class AlignedSet(NamedTuple):
  """A set of sentences with their translations.

  Attributes:
    name: name of the set.
    file: file of its rows, relative to the folder of shared data.
    fields: language -> field of a row; one language is `ENGLISH`.
    licence: licence of the text.
  """

  name: str
  file: str
  fields: Mapping[str, str]
  licence: str


SETS = (
  AlignedSet(
    'FLORES-200 dev',
    'parallel/flores200_dev.jsonl.xz',
    {
      ENGLISH: 'eng_Latn',
      'Traditional Chinese': 'zho_Hant',
      'Simplified Chinese': 'zho_Hans',
      'Cantonese': 'yue_Hant',
      'Japanese': 'jpn_Jpan',
    },
    'CC BY-SA 4.0',
  ),
  AlignedSet(
    'PUD',
    'parallel/pud_zh_hant_en.jsonl.gz',
    {ENGLISH: 'en', 'Traditional Chinese': 'zh_hant'},
    'CC BY-SA 3.0',
  ),
  AlignedSet(
    'Law of Taiwan',
    'parallel/law_zh_hant_en_valid.jsonl.gz',
    {ENGLISH: 'en', 'Traditional Chinese': 'zh'},
    'no copyright (ROC Copyright Act, article 9)',
  ),
)


def language_score(
  language: str, nats: np.ndarray, english_chars: np.ndarray, command: str
) -> score.Score:
  """The score of one language: bits per English character.

  Args:
    language: name of the score.
    nats: nats of each sentence in this language, end marks included.
    english_chars: code points of each English sentence.
    command: the command that gives the same number again.
  """
  return comparison.of_documents(
    language, nats, english_chars, command, BITS_PER_ENGLISH_CHAR
  )


def difference(
  language: str,
  nats: np.ndarray,
  english_nats: np.ndarray,
  english_chars: np.ndarray,
  command: str,
) -> score.Score:
  """The score of a language minus that of English, with a bootstrap interval.

  A resample has the same sentences in both languages. Some sentences are hard
  in every language; this effect cancels in the difference and does not widen
  the interval.
  """
  found = comparison.compare(nats, english_nats, english_chars, 1000)
  return score.Score(
    f'{language} minus English',
    found.difference,
    found.low,
    found.high,
    len(nats),
    command,
    BITS_PER_ENGLISH_CHAR,
  )
