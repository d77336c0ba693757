"""The poet's card, the part of a scorecard about verse.

The model writes verse for held-out titles, first lines and tunes. Its texts are
compared with texts of a trigram model and of poets.
"""

import dataclasses
import math
import pathlib
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe.data.text_file import read_json_lines
from moe.evaluate import comparison, ngram, score, verse, verse_figures
from moe.evaluate.verse_figures import Figure
from moe.infer import forms
from moe.infer.sampling import Sampling
from moe.runs import writing
from moe.runs.run import TrainedRun
from moe.runs.scorecard_scores import Asked, cut, progress

FILE = 'text/poems_shi_valid.jsonl.gz'
COUPLETS = 'text/couplets_verse_valid.jsonl.gz'
LYRICS, KNOWN_LYRICS = 'text/ci_valid.jsonl.gz', 'text/ci_train.jsonl.xz'
FILES = (FILE, COUPLETS, LYRICS, KNOWN_LYRICS)
# (lines, characters in a line) of quatrains and octaves.
FORMS = ((4, 5), (4, 7), (8, 5), (8, 7))
TEMPERATURE = 0.8
# A poem of the longest form has 65 characters with its punctuation and end
# mark, and rarely more tokens than this.
_MAX_TOKENS = 80
_LONGEST_TITLE, _LONGEST_LYRIC = 12, 75
_NUM_SHOWN = 6
_ROWS = 128
_EXPLANATION = (
  'Poems: the titles are of held-out poems in four forms: quatrains and octaves'
  ' of five and of seven characters. Nothing but the title asks for a form.',
  'Tones are by pypinyin with a list of entering-tone characters; a line keeps'
  ' its pattern if its second, fourth and sixth characters alternate.',
  'A poem rhymes if all its even lines end in one class of 中華新韻.',
  'Couplets: the first lines are of held-out couplets. Word classes are 16'
  ' closed ones, such as numbers, colours, negations, sky and land'
  ' (moe/evaluate/word_classes.txt). A place counts where one of the two'
  ' characters is in the list. The list is short, so the number stands for'
  ' parts of speech only in part; held-out couplets show what good ones reach.',
  'Ci: the tunes are of held-out lyrics of at most 75 characters. A form is the'
  ' lengths of all lines; it is kept if a lyric of this tune in the training'
  ' side has it.',
  'The n-gram is a character trigram of the same training text. Held-out texts'
  ' are the real ones of the same titles, first lines or tunes.',
)


class Group(NamedTuple):
  """The prompts and real texts of one kind of verse.

  Attributes:
    name: name of the kind.
    prompts: titles, first lines or tunes, without a line break.
    real: the held-out text of each prompt.
    measure: a function from texts, one for each prompt, to figures.
  """

  name: str
  prompts: list[str]
  real: list[str]
  measure: Callable[[Sequence[str]], list[Figure]]


def score_poems(
  trained: TrainedRun, asked: Asked, train_texts: Sequence[str]
) -> dict[str, Any]:
  """Measures verse of the model, of a trigram model and of real poets.

  Raises:
    ValueError: if the file of poems or the package pypinyin is missing, if the
      model is not causal, or if a prompt does not fit into its context.
  """
  if not (asked.data_directory / FILE).is_file():
    raise ValueError(f'{FILE} is missing below {asked.data_directory}.')
  writing.check_causal(trained.run, trained.workdir)
  trigrams = ngram.TrigramWriter(train_texts)
  groups = _groups(asked, '\n'.join(train_texts))
  entries = []
  for group in groups:
    by_writer = {
      score.OURS: written(trained, group.prompts),
      'trigram': [
        trigrams.write(f'{prompt}\n', _MAX_TOKENS, prompt)
        for prompt in group.prompts
      ],
      'held-out texts': group.real,
    }
    measured = [group.measure(texts) for texts in by_writer.values()]
    by_figure = list(zip(*measured, strict=True))
    shown = range(0, len(group.real), max(1, len(group.real) // _NUM_SHOWN))
    entries.append(
      {
        'name': group.name,
        'n': len(group.real),
        'writers': list(by_writer),
        'measures': {
          figures[0].name: [
            score_of(figure, asked.command).as_json() for figure in figures
          ]
          for figures in by_figure
        },
        'samples': [
          f'{group.prompts[i]}\n{by_writer[score.OURS][i]}' for i in shown
        ],
      }
    )
  return {
    'command': asked.command,
    'groups': entries,
    'explanation': _EXPLANATION,
  }


def score_of(figure: Figure, command: str) -> score.Score:
  """The score of a figure, with a bootstrap interval over texts."""
  if not any(figure.denominators):
    # No text has a part that this figure counts, such as a whole couplet.
    found = score.Score(figure.name, 0.0, None, None, 0, command, figure.unit)
  else:
    found = comparison.of_documents(
      figure.name,
      np.array(figure.numerators) * math.log(2),
      np.array(figure.denominators),
      command,
      figure.unit,
    )
  return dataclasses.replace(found, is_higher_better=figure.is_higher_better)


def _groups(asked: Asked, train_text: str) -> list[Group]:
  """The groups: poems, and couplets and ci if their files exist."""
  folder, count = asked.data_directory, asked.suite.poems
  readings, entering = verse.load_readings(), verse.load_entering()
  chosen = _chosen(read_json_lines(folder / FILE), count)
  wanted = [form for *_, form in chosen]
  groups = [
    Group(
      'poems',
      [title for title, _, _ in chosen],
      [poem for _, poem, _ in chosen],
      lambda poems: verse_figures.of_poems(
        poems, wanted, train_text, readings, entering
      ),
    )
  ]
  if (folder / COUPLETS).is_file():
    rows = cut(read_json_lines(folder / COUPLETS), count * len(FORMS))
    firsts = [row['up'] for row in rows]
    groups.append(
      Group(
        'couplets',
        firsts,
        [row['down'] for row in rows],
        lambda seconds: verse_figures.of_couplets(
          firsts, seconds, train_text, readings, entering
        ),
      )
    )
  if all((folder / name).is_file() for name in (LYRICS, KNOWN_LYRICS)):
    groups.append(_lyric_group(folder, count, train_text, readings))
  return groups


def _lyric_group(
  folder: pathlib.Path, count: int, train_text: str, readings: verse.Readings
) -> Group:
  """Short held-out ci with tunes that the training lyrics also have."""
  known = {}
  for row in read_json_lines(folder / KNOWN_LYRICS):
    shape = verse.shape_of(''.join(row['paragraphs']))
    known.setdefault(row['rhythmic'], set()).add(shape)
  rows = [
    (row['rhythmic'], ''.join(row['paragraphs']))
    for row in read_json_lines(folder / LYRICS)
  ]
  rows = [
    (tune, text)
    for tune, text in rows
    if tune in known and len(text) <= _LONGEST_LYRIC
  ]
  rows = cut(rows, count)
  shapes = [known[tune] for tune, _ in rows]
  return Group(
    'ci',
    [tune for tune, _ in rows],
    [text for _, text in rows],
    lambda lyrics: verse_figures.of_lyrics(
      lyrics, shapes, train_text, readings
    ),
  )


def _chosen(
  rows: Sequence[dict[str, Any]], num_per_form: int
) -> list[tuple[str, str, tuple[int, int]]]:
  """Chooses the first poems of each form with a plain title, see `is_plain`.

  Returns:
    (title, poem, form) of each poem.
  """
  chosen = []
  for form in FORMS:
    found = []
    for row in rows:
      poem = ''.join(row['paragraphs'])
      if is_plain(row['title']) and verse.is_form_kept(poem, *form):
        found.append((row['title'], poem, form))
    chosen += found[:num_per_form]
  return chosen


def is_plain(title: str | None) -> bool:
  """Whether a title is short, not empty, and has no '，', '。', '（' or '('."""
  text = title or ''
  return len(text) <= _LONGEST_TITLE and bool(re.fullmatch('[^，。（(]+', text))


def held_out_titles(folder: pathlib.Path, count: int) -> list[str]:
  """Draws different plain titles of held-out poems, with a fixed seed.

  A title has at least 3 characters, see also `is_plain`. There are at most
  `count` titles.
  """
  rows = read_json_lines(folder / FILE)
  titles = list(dict.fromkeys(r['title'] for r in rows if is_plain(r['title'])))
  titles = [title for title in titles if len(title) > 2]
  random.Random(0).shuffle(titles)
  return titles[:count]


def written(trained: TrainedRun, titles: Sequence[str]) -> list[str]:
  """Writes a text for each title; no verse form restricts the tokens."""
  vocabulary = trained.vocabulary
  table = forms.free_table(forms.pieces_of(vocabulary), vocabulary.eos)
  prompts = [vocabulary.encode(f'{title}\n') for title in titles]
  room = trained.run.data.sequence_length - max(map(len, prompts))
  if room < 1:
    raise ValueError(
      f'titles must fit into the context of {trained.run.data.sequence_length}'
      f' tokens, got one of {max(map(len, prompts))}.'
    )
  write = writing.writer(trained, Sampling(TEMPERATURE))
  limit, seed = min(room, _MAX_TOKENS), trained.run.settings.seed
  on_progress, texts = progress('verse'), []
  for start in range(0, len(prompts), _ROWS):
    rows = prompts[start : start + _ROWS]
    # Each batch has its own seed, so that equal prompts in two batches get
    # different texts.
    found = write(rows, [table] * len(rows), limit, seed + start)
    texts += [vocabulary.decode(ids) for ids in found]
    on_progress(len(texts), len(prompts))
  return texts
