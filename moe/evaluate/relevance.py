"""Whether a poem fits its title, judged by counts of characters alone.

The judge counts how often one character is in a title and another one in its
poem. It depends on no model, so it can also judge poems that a model has chosen
by its own likelihood.
"""

import collections
import math
from collections.abc import Iterable, Sequence

import numpy as np

from moe.infer.forms import CHINESE

# A poem's own title must be found among this many titles.
GROUP = 16


class TitleJudge:
  """Scores titles for a poem by pointwise mutual information."""

  def __init__(self, titles: Iterable[str], pairs: Iterable[tuple[str, str]]):
    """Counts characters.

    Args:
      titles: all titles that will be asked about.
      pairs: (title, poem) of other poems, such as the training split.
    """
    wanted = set(''.join(titles))
    # Character of a title -> character of a poem -> number of poems with both.
    self._both = {char: collections.Counter() for char in wanted}
    self._in_poem, self._in_title = collections.Counter(), collections.Counter()
    self._num_poems = 0
    for title, poem in pairs:
      inside = set(CHINESE.findall(poem))
      self._num_poems += 1
      self._in_poem.update(inside)
      for char in wanted & set(title):
        self._in_title[char] += 1
        self._both[char].update(inside)

  def score(self, title: str, poem: str) -> float:
    """The mean of log(p(c | poem) / p(c)) over the characters c of a title.

    p(c) is the share of the poems that have c in their titles. p(c | poem) is a
    mean over the different characters d of the poem. Each term is the share of
    the poems with d that have c in their titles. So that no share is 0 or 0/0,
    we add 1 to each denominator. To the numerator we add 1 in p(c), and p(c) in
    the other shares. Only Chinese characters count; the score is -inf if the
    title or the poem has none.
    """
    inside = set(CHINESE.findall(poem))
    asked = CHINESE.findall(title)
    if not inside or not asked:
      return -math.inf
    total = 0.0
    for char in asked:
      base = (self._in_title[char] + 1) / (self._num_poems + 1)
      shares = [
        (self._both[char][other] + base) / (self._in_poem[other] + 1)
        for other in inside
      ]
      total += math.log(sum(shares) / len(shares) / base)
    return total / len(asked)


def is_matched(judge: TitleJudge, titles: Sequence[str], poem: str) -> bool:
  """Whether the first title suits a poem better than all others do."""
  own, *others = (judge.score(title, poem) for title in titles)
  return own > max(others)


def matched_shares(
  judge: TitleJudge, titles: Sequence[str], poems: Sequence[Sequence[str]]
) -> np.ndarray:
  """For every title and sample, whether the judge matches them.

  Args:
    judge: a judge that knows all titles.
    titles: different titles. Each `GROUP` titles in a row form a group, and a
      title is compared with the others of its group.
    poems: samples for each title, the same number for each.

  Returns:
    bool [titles, samples].
  """
  found = []
  for place, (title, samples) in enumerate(zip(titles, poems, strict=True)):
    start = place - place % GROUP
    others = [t for t in titles[start : start + GROUP] if t != title]
    found.append([is_matched(judge, [title, *others], p) for p in samples])
  return np.array(found)
