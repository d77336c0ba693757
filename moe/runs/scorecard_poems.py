"""The poet's card, the part of a scorecard on poems with held-out titles.

The poems of the model are compared with those of a trigram model and of poets.
"""

import re
from collections.abc import Sequence
from typing import Any

from moe.data.text_file import read_json_lines
from moe.evaluate import ngram, verse
from moe.infer import forms
from moe.infer.sampling import Sampling
from moe.runs import writing
from moe.runs.run import TrainedRun
from moe.runs.scorecard_scores import Asked

FILE = 'text/poems_shi_valid.jsonl.gz'
# (lines, characters in a line) of quatrains and octaves.
FORMS = ((4, 5), (4, 7), (8, 5), (8, 7))
TEMPERATURE = 0.8
# A poem of the longest form has at most this many tokens, with its punctuation
# and its end mark.
_MAX_TOKENS = 80
_LONGEST_TITLE = 12
_NUM_SHOWN = 6
_EXPLANATION = (
  'The titles are of held-out poems in four forms: quatrains and octaves of'
  ' five and of seven characters. Nothing but the title asks for a form.',
  'Tones are by pypinyin with a list of entering-tone characters; a line keeps'
  ' its pattern if its second, fourth and sixth characters alternate.',
  'A poem rhymes if all its even lines end in one class of 中華新韻.',
  'The n-gram is a character trigram of the same training text. Held-out poems'
  ' are the real ones of the same titles.',
  'Parallelism is measured by tones alone, because no tagger of parts of speech'
  ' is among our packages; ci are not measured.',
)


def score_poems(
  trained: TrainedRun, asked: Asked, train_texts: Sequence[str]
) -> dict[str, Any]:
  """Measures poems of the model, of a trigram model and of real poets.

  Raises:
    ValueError: if the file of poems or pypinyin is missing, or if the model is
      not causal.
  """
  path = asked.data_directory / FILE
  if not path.is_file():
    raise ValueError(f'{FILE} is missing below {asked.data_directory}.')
  writing.check_causal(trained.run, trained.workdir)
  readings, entering = verse.load_readings(), verse.load_entering()
  chosen = _chosen(read_json_lines(path), asked.suite.poems)
  titles = [title for title, _, _ in chosen]
  wanted = [form for *_, form in chosen]
  train_text = '\n'.join(train_texts)
  trigrams = ngram.TrigramWriter(train_texts)
  by_writer = {
    'this model': _written(trained, titles),
    'trigram': [
      trigrams.write(f'{title}\n', _MAX_TOKENS, title) for title in titles
    ],
    'held-out poems': [poem for _, poem, _ in chosen],
  }
  measured = [
    verse.measure(poems, wanted, train_text, readings, entering)
    for poems in by_writer.values()
  ]
  return {
    'n': len(chosen),
    'command': asked.command,
    'writers': list(by_writer),
    'measures': {
      name: [f'{one[name]:.3f}' for one in measured] for name in measured[0]
    },
    'explanation': _EXPLANATION,
    'samples': [
      f'{title}\n{poem}'
      for title, poem in list(
        zip(titles, by_writer['this model'], strict=True)
      )[:: max(1, len(titles) // _NUM_SHOWN)]
    ],
  }


def _chosen(
  rows: Sequence[dict[str, Any]], num_per_form: int
) -> list[tuple[str, str, tuple[int, int]]]:
  """Chooses the first poems of each form that have short titles.

  Returns:
    (title, poem, form) of each poem.
  """
  chosen = []
  for form in FORMS:
    found = []
    for row in rows:
      poem = ''.join(row['paragraphs'])
      is_plain = re.fullmatch(r'[^，。（(]+', row['title'] or '')
      if (
        is_plain
        and len(row['title']) <= _LONGEST_TITLE
        and verse.is_form_kept(poem, *form)
      ):
        found.append((row['title'], poem, form))
    chosen += found[:num_per_form]
  return chosen


def _written(trained: TrainedRun, titles: Sequence[str]) -> list[str]:
  """Writes a poem for each title; no rule of a form restricts the tokens."""
  vocabulary = trained.vocabulary
  table = forms.free_table(forms.pieces_of(vocabulary), vocabulary.eos)
  prompts = [vocabulary.encode(f'{title}\n') for title in titles]
  room = trained.run.data.sequence_length - max(map(len, prompts))
  if room < 1:
    raise ValueError(
      f'titles must fit into the context of {trained.run.data.sequence_length}'
      f' tokens, got one of {max(map(len, prompts))}.'
    )
  written = writing.generate(
    trained,
    Sampling(TEMPERATURE),
    prompts,
    [table] * len(prompts),
    min(room, _MAX_TOKENS),
    trained.run.settings.seed,
  )
  return [vocabulary.decode(ids) for ids in written]
