"""Times the drawing of pictures, with and without guidance."""

from collections.abc import Callable
from typing import Any

from moe import bounds
from moe.evaluate.timing import Timed, clock, measure
from moe.runs.drawing import Drawing
from moe.runs.picture_model import PictureModel


def compare(
  model: PictureModel, sentence: str, num: int, guidance: float, rounds: int
) -> dict[str, Any]:
  """Compares drawing with guidance against drawing without it.

  Guidance reads each picture twice, with its sentence and without one. Both
  programs draw all codes of the pictures and decode them into pixels. The
  caption losses are left out.

  Args:
    model: the model.
    sentence: what all pictures show.
    num: number of pictures that are drawn at a time.
    guidance: scale of the guidance, not 1.
    rounds: samples of each program.

  Returns:
    The report of `timing.measure`, in seconds per picture.

  Raises:
    ValueError: if a number is out of range, or if the model cannot draw the
      sentence.
  """
  bounds.at_least(1, '--num', num, 'pictures to draw at a time')
  if guidance == 1:
    raise ValueError(
      '--guidance must not be 1, since 1 is drawing without guidance: use 2.'
    )

  def seconds(guidance: float) -> Callable[[], float]:
    options = Drawing(guidance)
    draw = lambda: model.tokenizer.decode(
      model.draw_codes([sentence] * num, options)
    )
    sample = clock(draw)
    return lambda: sample() / num

  programs = [
    Timed('without guidance', seconds(1)),
    Timed(f'with guidance {guidance:g}', seconds(guidance)),
  ]
  return measure(programs, rounds, 'picture') | {'pictures at a time': num}
