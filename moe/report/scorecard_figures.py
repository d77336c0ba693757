"""Draws the figures of a scorecard's page, as SVG."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from moe.evaluate import aligned
from moe.evaluate.score import OURS
from moe.report import figures as draw

Card = dict[str, Any]


def benchmarks(card: Card) -> str | None:
  """Bars of accuracies and F1 scores, with the scores of guessing."""
  bars = [
    (entry['name'], found, found['guess'])
    for entry in (*card['benchmarks'], *card['readings'])
    for found in entry.get('metrics', ())
    if found['name'] in ('acc', 'f1')
  ]
  return _bars(bars, 'share of right answers')


def languages(card: Card) -> str | None:
  """Bars of all languages of all aligned sets; None if there is no score."""
  bars = [
    (f'{entry["name"]}, {side["score"]["name"]}', side['score'], None)
    for entry in card['languages']
    for side in entry.get('languages', ())
  ]
  return _bars(bars, aligned.BITS_PER_ENGLISH_CHAR)


def loss(card: Card) -> str | None:
  """Bars of the model and of its baselines in bits per character."""
  bars = [
    (found['name'], found, None)
    for found in card['loss'].get('scores', ())
    if found['unit'] == 'bits per character'
  ]
  return _bars(bars, 'bits per character')


def _bars(
  bars: Sequence[tuple[str, dict[str, Any], float | None]], label: str
) -> str | None:
  """Draws a bar for each score, with its interval and the score of guessing."""
  if not bars:
    return None
  with draw.style(draw.PAGE):
    figure = Figure((9.2, 0.7 + 0.32 * len(bars)), layout='constrained')
    axes = figure.subplots()
    colors = draw.PAGE
    has_baselines = any(found['name'] == OURS for _, found, _ in bars)
    for place, (_, found, guess) in enumerate(bars):
      is_baseline = has_baselines and found['name'] != OURS
      color = colors.soft if is_baseline else colors.series[0]
      axes.barh(place, found['value'], 0.62, color=color, alpha=0.75)
      if found['low'] is not None:
        ends = [found['low'], found['high']]
        axes.plot(ends, [place, place], color=colors.ink, linewidth=1.6)
      if guess is not None:
        line = [place - 0.4, place + 0.4]
        axes.plot([guess, guess], line, color=colors.series[1], linewidth=2)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.set_xlabel(label)
    return draw.svg(figure, label)


def verse(group: dict[str, Any]) -> str:
  """Bars of the shares of one kind of verse, one colour for each writer."""
  shares = {
    name: values
    for name, values in group['measures'].items()
    if values[0]['unit'] == 'share'
  }
  writers, colors = group['writers'], draw.PAGE
  height = 0.8 / len(writers)
  with draw.style(colors):
    figure = Figure((9.2, 0.9 + 0.55 * len(shares)), layout='constrained')
    axes = figure.subplots()
    for number, writer in enumerate(writers):
      found = [values[number] for values in shares.values()]
      offset = (number - (len(writers) - 1) / 2) * height
      places = [i + offset for i in range(len(found))]
      axes.barh(
        places,
        [one['value'] for one in found],
        0.9 * height,
        color=colors.series[number],
        alpha=0.75,
        label=writer,
      )
      for place, one in zip(places, found, strict=True):
        if one['low'] is not None:
          ends = [one['low'], one['high']]
          axes.plot(ends, [place, place], color=colors.ink, linewidth=1.2)
    axes.set_yticks(range(len(shares)), list(shares))
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)
    axes.set_xlim(0, 1)
    axes.set_xlabel('share')
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, 1.12), ncols=3)
    return draw.svg(figure, group['name'])
