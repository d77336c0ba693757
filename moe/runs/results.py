"""Computes the results at the end of a run: baseline scores, and samples."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence

from moe import atomic_files
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
  cache_dir: str,
  command: str = '',
) -> list[Score]:
  """Bits per character of n-gram models of the training texts.

  Args:
    train: token stores of the training texts.
    held_out: token stores of the held-out texts, which are scored.
    vocabulary: vocabulary of all stores.
    cache_dir: directory that keeps the scores, since counting a large corpus
      takes minutes.
    command: the command that computes the scores again; it is shown with them.

  Returns:
    A score for each order of the n-grams. There are no scores if the corpus is
    too big to count, if documents have other ids than text, or if parts of
    documents are not scored, such as prompts. The model reads these parts but
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
  bits = _cached_bits(train, held_out, vocabulary, cache_dir)
  n = sum(store.lengths.size for store in held_out)
  return [Score(name, bits[name], n=n, command=command) for name in BASELINES]


def _cached_bits(
  train: Sequence[Store],
  held_out: Sequence[Store],
  vocabulary: Vocabulary,
  cache_dir: str,
) -> dict[str, float]:
  """Scores by name, from the cache if it has the scores of these stores."""
  contents = [
    [store.manifest['content_sha256'] for store in stores]
    for stores in (train, held_out)
  ]
  key = json.dumps([contents, vocabulary.sha256, BASELINES])
  name = hashlib.sha256(key.encode()).hexdigest()
  path = os.path.join(cache_dir, 'baselines', f'{name}.json')
  if os.path.exists(path):
    with open(path, encoding='utf-8') as f:
      return json.load(f)
  texts, scored = _texts(train, vocabulary), _texts(held_out, vocabulary)
  bits = {
    name: round(ngram_bits(texts, scored, order), 4)
    for name, order in BASELINES.items()
  }
  os.makedirs(os.path.dirname(path), exist_ok=True)
  atomic_files.write_json(path, bits)
  return bits


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
