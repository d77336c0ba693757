"""Computes the results at the end of a run: baseline scores, and samples."""

import logging
from collections.abc import Sequence

from moe.data.store import Store
from moe.evaluate.ngram import ngram_bits
from moe.evaluate.score import Score
from moe.infer import forms
from moe.infer.sampling import Sampling
from moe.modalities.ids import of_manifest
from moe.modalities.text import Vocabulary
from moe.runs import writing
from moe.runs.run import TrainedRun

_logger = logging.getLogger(__name__)

# For a longer text, counting n-grams would take minutes and gigabytes.
MAX_BASELINE_CHARS = 20_000_000
BASELINES = {'unigram': 1, 'bigram': 2, 'trigram': 3}
SAMPLES_PER_PROMPT = 2
TEMPERATURE = 0.8


def _texts(stores: Sequence[Store], vocabulary: Vocabulary) -> list[str]:
  """The documents of token stores, decoded into text."""
  texts = []
  for store in stores:
    for record in store.read(range(store.lengths.size)):
      texts.append(vocabulary.decode(record['tokens'][:-1].tolist()))
  return texts


def baselines(
  train: Sequence[Store],
  held_out: Sequence[Store],
  vocabulary: Vocabulary,
  command: str = '',
) -> list[Score]:
  """Bits per character of n-gram models of the training texts.

  Args:
    train: token stores of the training texts.
    held_out: token stores of the held-out texts, which are scored.
    vocabulary: vocabulary of all stores.
    command: command that computes the scores again; the scores show it.

  Returns:
    A score for each order of the n-grams. There are no scores if the corpus is
    too big to count, if documents are not text alone, or if documents have
    parts that are not scored, such as prompts. The model reads such a part but
    n-grams do not, so the comparison would be unfair.
  """
  chars = sum(store.manifest['counts']['chars'] for store in train)
  if chars > MAX_BASELINE_CHARS:
    _logger.info(
      'no n-gram baselines: the corpus has more than'
      f' {MAX_BASELINE_CHARS:,} characters'
    )
    return []
  for store in (*train, *held_out):
    manifest = store.manifest
    if not of_manifest(manifest).is_text:
      _logger.info('no n-gram baselines: documents are not text alone')
      return []
    if manifest['counts']['scored_tokens'] < manifest['tokens']:
      _logger.info(
        f'no n-gram baselines: a part of the documents of {manifest["task"]} is'
        ' given and not scored'
      )
      return []
  texts, scored = _texts(train, vocabulary), _texts(held_out, vocabulary)
  return [
    Score(
      name,
      round(ngram_bits(texts, scored, order), 4),
      n=len(scored),
      command=command,
    )
    for name, order in BASELINES.items()
  ]


def samples(
  trained: TrainedRun, prompts: Sequence[str]
) -> list[dict[str, str]]:
  """Writes `SAMPLES_PER_PROMPT` samples after each prompt.

  Args:
    trained: the trained run.
    prompts: texts that the samples continue.

  Returns:
    {'prompt', 'text'} of each sample; the text includes the prompt.
  """
  vocabulary = trained.vocabulary
  table = forms.free_table(forms.pieces_of(vocabulary), vocabulary.eos)
  asked = [p for p in prompts for _ in range(SAMPLES_PER_PROMPT)]
  if not asked:
    return []
  ids = [vocabulary.encode(prompt) for prompt in asked]
  limit = trained.run.data.sequence_length - max(map(len, ids))
  written = writing.generate(
    trained,
    Sampling(TEMPERATURE),
    ids,
    [table] * len(ids),
    limit,
    trained.run.settings.seed,
  )
  return [
    {'prompt': prompt, 'text': vocabulary.decode([*start, *rest])}
    for prompt, start, rest in zip(asked, ids, written, strict=True)
  ]
