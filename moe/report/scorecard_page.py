"""Writes a self-contained page about a scorecard."""

import pathlib
from collections.abc import Sequence
from typing import Any

from moe.evaluate import aligned
from moe.report import scorecard_figures, templates
from moe.scale.quantities import short

Card = dict[str, Any]
Rows = list[list[str]]


def write(
  cards: Sequence[Card], paired: Sequence[dict[str, Any]], path: pathlib.Path
) -> None:
  """Writes the page about the first card.

  Args:
    cards: a scorecard of `moe.runs.scorecard`, and optionally a second one for
      comparison.
    paired: paired differences of two scorecards, from
      `moe.runs.scorecard.differences`; empty for a single scorecard.
    path: file of the page.
  """
  card, *others = cards
  page = templates.render(
    'scorecard_page.html',
    title=f'Scorecard of {pathlib.Path(card["checkpoint"]).name}',
    card=card,
    cards=_cards(card),
    questions=_questions(card),
    figures={
      'benchmarks': scorecard_figures.benchmarks(card),
      'languages': scorecard_figures.languages(card),
      'loss': scorecard_figures.loss(card),
    },
    tables={
      'benchmarks': _benchmark_table(card),
      'languages': _language_table(card),
      'loss': _loss_table(card),
      'cost': _cost_table(cards),
      'relevance': _relevance_table(card),
      'differences': _difference_table(paired),
      'licences': [['what', 'licence or source'], *card['licences']],
    },
    explanation=aligned.EXPLANATION,
    poet=card.get('poet'),
    verse_table=verse_table,
    verse_figure=scorecard_figures.verse,
    against=others and pathlib.Path(others[0]['checkpoint']).name,
  )
  path.write_text(page, encoding='utf-8')


def _metric(card: Card, name: str, metric: str) -> dict[str, Any] | None:
  for entry in (*card['benchmarks'], *card['readings']):
    for found in entry.get('metrics', ()):
      if (entry['name'], found['name']) == (name, metric):
        return found
  return None


def with_interval(found: dict[str, Any] | None, form: str = '.3g') -> str:
  """Formats a score for people: value, interval and number of items."""
  if found is None:
    return 'not measured'
  text = f'{found["value"]:{form}}'
  if found['low'] is not None:
    text += f' ({found["low"]:{form}} to {found["high"]:{form}})'
  return text if found['n'] is None else f'{text}, n = {found["n"]:,}'


def _cards(card: Card) -> list[tuple[str, str, str]]:
  """The cards at the top of the page: (title, number, remark)."""
  cards = []
  for score in card['loss'].get('scores', ())[:1]:
    remark = f'bits per character on {card["loss"]["task"]}'
    cards.append(('Held out', f'{score["value"]:.3f}', remark))
  for name in ('lambada_openai', 'wsc273', 'winogrande', 'xcopa_zh'):
    found = _metric(card, name, 'acc')
    if found:
      remark = f'guessing {found["guess"]:.1%}, n = {found["n"]:,}'
      cards.append((name, f'{found["value"]:.1%}', remark))
  total = card['cost'].get('parameters, total')
  if total:
    active = card['cost'].get('parameters, active per token', total)
    remark = f'{short(active)} active per token'
    cards.append(('Parameters', short(total), remark))
  return cards


def _questions(card: Card) -> list[tuple[str, str, str]]:
  """The eight main questions: (question, answer, anchor on the page)."""
  accuracy = lambda name: with_interval(_metric(card, name, 'acc'), '.1%')
  cost = card['cost']
  names = [
    f'{entry["name"]} {entry["metrics"][-1]["name"]}'
    f' {entry["metrics"][-1]["value"]:.1%}'
    for entry in (*card['benchmarks'], *card['readings'])
    if entry.get('metrics') and entry['metrics'][-1]['unit'] == 'share'
  ]
  languages = [
    side['score']
    for entry in card['languages'][:1]
    for side in entry.get('languages', ())
  ]
  scale = ', '.join(f'{s["name"]} {s["value"]:.2f}' for s in languages)
  loss = next(iter(card['loss'].get('scores', ())), None)
  sized = lambda key: short(cost[key]) if key in cost else 'unknown'
  spent = [
    f'{v:.3g} {k}' for k, v in cost.items() if 'hours' in k or 'kWh' in k
  ]
  return [
    ('LAMBADA?', accuracy('lambada_openai'), 'benchmarks'),
    (
      'Winograd?',
      f'WSC273 {accuracy("wsc273")}; WinoGrande {accuracy("winogrande")};'
      f' XWinograd-zh {accuracy("xwinograd_zh")}',
      'benchmarks',
    ),
    (
      'The standard benchmarks?',
      ', '.join(names) or 'not measured',
      'benchmarks',
    ),
    (
      'Loss per character, since vocabularies differ?',
      f'{with_interval(loss, ".4f")} bits per character',
      'loss',
    ),
    (
      'Comparable across languages?',
      f'bits per English character: {scale or "not measured"}',
      'languages',
    ),
    (
      'Parameters against FLOPs?',
      f'{sized("parameters, total")} parameters,'
      f' {sized("parameters, active per token")} active,'
      f' {sized("FLOPs per token, forward")} FLOPs per token',
      'cost',
    ),
    ('What did it cost?', '; '.join(spent) or 'unknown', 'cost'),
    (
      'Who can use it?',
      '; '.join(f'{what}: {x}' for x, what in _by_licence(card).items()),
      'licences',
    ),
  ]


def _by_licence(card: Card) -> dict[str, str]:
  """Returns licence -> names of all that have it, joined by commas.

  The text of each source in the card ends with its licence.
  """
  found = {}
  for what, source in card['licences']:
    licence = source.rpartition('licence ')[2]
    found[licence] = f'{found[licence]}, {what}' if licence in found else what
  return found


def _benchmark_table(card: Card) -> Rows:
  rows = [
    ['set', 'score', 'value', '95% interval', 'guessing', 'n', 'shots']
    + ['in training', 'without']
  ]
  for entry in (*card['benchmarks'], *card['readings']):
    if 'skipped' in entry:
      rows.append([entry['name'], 'skipped', *[''] * 7])
    share = entry.get('contaminated')
    for found in entry.get('metrics', ()):
      form = '{:.1%}' if found['unit'] == 'share' else '{:.4g}'
      clean = found.get('clean')
      rows.append([
        entry['name'],
        found['name'],
        form.format(found['value']),
        _interval(found, form),
        '–' if found['guess'] is None else f'{found["guess"]:.1%}',
        f'{found["n"]:,}',
        str(entry['shots']),
        '–' if share is None else f'{share:.1%}',
        '–' if clean is None else _with_ends(clean, form),
      ])  # fmt: skip
  return rows


def _interval(found: dict[str, Any], form: str) -> str:
  if found['low'] is None:
    return '–'
  return f'{form.format(found["low"])} to {form.format(found["high"])}'


def _language_table(card: Card) -> Rows:
  rows = [['set', 'language', 'bits per English character', '95% interval']]
  rows[0] += ['minus English', '95% interval', 'n', 'in training']
  for entry in card['languages']:
    if 'skipped' in entry:
      rows.append([entry['name'], 'skipped', *[''] * 6])
    share = entry.get('contaminated')
    for side in entry.get('languages', ()):
      found, gap = side['score'], side.get('difference')
      rows.append([
        entry['name'],
        found['name'],
        f'{found["value"]:.3f}',
        _interval(found, '{:.3f}'),
        f'{gap["value"]:+.3f}' if gap else '–',
        _interval(gap, '{:+.3f}') if gap else '–',
        f'{found["n"]:,}',
        '–' if share is None else f'{share:.1%}',
      ])  # fmt: skip
  return rows


def _loss_table(card: Card) -> Rows:
  rows = [['what', 'value', '95% interval', 'n', 'unit']]
  for found in card['loss'].get('scores', ()):
    rows.append([
      found['name'],
      f'{found["value"]:.4f}',
      _interval(found, '{:.4f}'),
      f'{found["n"]:,}',
      found['unit'],
    ])  # fmt: skip
  return rows


def _cost_table(cards: Sequence[Card]) -> Rows:
  names = [pathlib.Path(card['checkpoint']).name for card in cards]
  rows = [['', *names]]
  for key in dict.fromkeys(key for card in cards for key in card['cost']):
    cells = [card['cost'].get(key) for card in cards]
    rows.append([key, *('–' if x is None else _number(x) for x in cells)])
  return rows


def _number(value: float) -> str:
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def verse_table(group: dict[str, Any]) -> Rows:
  """Makes a table for one kind of verse, with a column for each writer."""
  measures = group['measures'].items()
  return [
    ['', *group['writers']],
    *([name, *map(_of_verse, values)] for name, values in measures),
  ]


def _of_verse(found: dict[str, Any]) -> str:
  return _with_ends(found, '{:.1%}' if found['unit'] == 'share' else '{:.2f}')


def _with_ends(found: dict[str, Any], form: str) -> str:
  """A value with its interval, if it has one."""
  value = form.format(found['value'])
  return (
    value if found['low'] is None else f'{value} ({_interval(found, form)})'
  )


def _relevance_table(card: Card) -> Rows:
  found = (card.get('poet') or {}).get('relevance', {}).get('scores', ())
  if not found:
    return []
  rows = [['poems of the model', 'share matched', '95% interval', 'titles']]
  for one in found:
    form = '{:+.1%}' if 'gain' in one['name'] else '{:.1%}'
    value = form.format(one['value'])
    rows.append([one['name'], value, _interval(one, form), str(one['n'])])
  return rows


def _difference_table(paired: Sequence[dict[str, Any]]) -> Rows:
  if not paired:
    return []
  rows = [['score', 'difference', '95% interval', 'n', 'better is']]
  for found in paired:
    better = 'higher' if found['is_higher_better'] else 'lower'
    rows.append([
      found['name'],
      f'{found["value"]:+.4f}',
      _interval(found, '{:+.4f}'),
      f'{found["n"]:,}',
      better,
    ])  # fmt: skip
  return rows
