"""Character n-gram models, a baseline that every language model should beat."""

import collections
import random
from collections.abc import Iterable, Sequence

import numpy as np

# Unigrams are interpolated with a uniform distribution over all Unicode code
# points and the end mark. So every text has a finite score.
_END = 0x110000
NUM_SYMBOLS = _END + 1


def ngram_bits(
  train_texts: Iterable[str], held_out_texts: Iterable[str], order: int
) -> float:
  """Bits per character of a Witten-Bell interpolated character n-gram.

  Method C of Witten and Bell (1991), https://doi.org/10.1109/18.87000,
  interpolated: P(w | h) = (count(h, w) + kinds(h) P(w | h')) / (count(h) +
  kinds(h)). kinds(h) is the number of different characters that follow the
  context h in the training texts; h' is h without its first character. If h
  does not occur in the training texts, P(w | h) is P(w | h'). A document begins
  with order - 1 begin marks. Unigrams are interpolated with the uniform
  distribution over `NUM_SYMBOLS`. So a character that does not occur in the
  training texts is scored too; with a large corpus it costs about 30 bits.

  Args:
    train_texts: texts to count.
    held_out_texts: texts to score, each with its end mark.
    order: 1 for unigrams, 2 for bigrams, and so on.

  Returns:
    Bits of all characters and end marks, divided by the number of characters
    without end marks, as everywhere in this project.

  Raises:
    ValueError: if `order` is below 1, or if there is no character to count or
      to score.
  """
  held_out_texts = list(held_out_texts)
  num_chars = sum(map(len, held_out_texts))
  bits = document_bits(train_texts, held_out_texts, order)
  return float(bits.sum() / num_chars)


def document_bits(
  train_texts: Iterable[str],
  held_out_texts: Sequence[str],
  order: int,
  with_end: bool = True,
) -> np.ndarray:
  """Bits of each held-out text, see `ngram_bits`.

  Args:
    train_texts: texts to count.
    held_out_texts: texts to score.
    order: 1 for unigrams, 2 for bigrams, and so on.
    with_end: whether end marks are predicted. If not, no end mark is scored
      or counted, so all probability is that of characters.

  Returns:
    float64 [number of held-out texts].
  """
  if order < 1:
    raise ValueError(f'order={order} must be at least 1: use 1 for unigrams.')
  train, held_out = _symbols(train_texts), _symbols(held_out_texts)
  if not (held_out != _END).any() or not (train != _END).any():
    raise ValueError(
      'n-grams need a character to count and one to score, got'
      f' {train.size} and {held_out.size} symbols: pass texts that are not'
      ' empty.'
    )
  alphabet, char = np.unique(
    np.concatenate([train, held_out]), return_inverse=True
  )
  is_end = alphabet[char] == _END
  is_start = np.concatenate([[True], is_end[:-1]])
  is_predicted = np.full(char.size, True) if with_end else ~is_end
  num_train = np.count_nonzero(is_predicted[: train.size])
  # `context` has for each place the id of the n-gram that ends before it. Ids
  # are numbered anew when the context grows by a character, so that an id and a
  # character together fit 64 bits.
  context = np.zeros(char.size, np.int64)
  is_scored = is_predicted[train.size :]
  prob = np.full(np.count_nonzero(is_scored), 1.0 / NUM_SYMBOLS)
  for _ in range(order):
    keys, gram = np.unique(context * alphabet.size + char, return_inverse=True)
    prob = _interpolate(
      prob, context[is_predicted], gram[is_predicted], num_train
    )
    context = np.where(is_start, keys.size, np.roll(gram, 1))
  begins = np.flatnonzero(is_start[train.size :])
  bits = np.zeros(held_out.size)
  bits[is_scored] = -np.log2(prob)
  return np.add.reduceat(bits, begins)


def _interpolate(
  prob: np.ndarray, context: np.ndarray, gram: np.ndarray, num_train: int
) -> np.ndarray:
  """Computes the probabilities of one order from those of the order below.

  Args:
    prob: P(w | h') for every held-out character; h' is h without its first
      character.
    context: id of h for every character, those of training first.
    gram: id of (h, w) for every character.
    num_train: number of training characters.

  Returns:
    P(w | h) for every held-out character.
  """
  count = np.bincount(gram[:num_train], minlength=gram.max() + 1)
  total = np.bincount(context[:num_train], minlength=context.max() + 1)
  # kinds(h) counts each different n-gram once, at its first place in training.
  first = np.unique(gram[:num_train], return_index=True)[1]
  kinds = np.bincount(context[first], minlength=context.max() + 1)
  here = context[num_train:]
  seen, kinds = total[here], kinds[here]
  with_context = (count[gram[num_train:]] + kinds * prob) / np.maximum(
    seen + kinds, 1
  )
  return np.where(seen > 0, with_context, prob)


def _symbols(texts: Iterable[str]) -> np.ndarray:
  """Code points of all texts, with `_END` after each text."""
  texts = list(texts)
  ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
  # 'surrogatepass' keeps lone surrogates, which count like other code points.
  encoded = ''.join(texts).encode('utf-32-le', 'surrogatepass')
  return np.insert(np.frombuffer(encoded, '<u4').astype(np.int64), ends, _END)


class TrigramWriter:
  """Writes text with a trigram model: two characters predict the next one."""

  def __init__(self, texts: Iterable[str]):
    """Lists the characters that follow each context of one or two characters.

    '' in a list stands for the end of a text.
    """
    self._after = collections.defaultdict(list)
    for text in texts:
      for i, char in enumerate(text):
        for size in (1, 2):
          if i >= size:
            self._after[text[i - size : i]].append(char)
        if i + 1 == len(text):
          self._after[text[max(0, i - 1) :]].append('')

  def write(self, prompt: str, limit: int, seed: str) -> str:
    """Writes at most `limit` characters after a prompt.

    The text ends if the end of a training text is drawn, or if nothing follows
    the last character in the training texts.
    """
    draw, text = random.Random(seed), prompt
    for _ in range(limit):
      choices = self._after.get(text[-2:]) or self._after.get(text[-1:])
      char = draw.choice(choices) if choices else ''
      if not char:
        break
      text += char
    return text[len(prompt) :]
