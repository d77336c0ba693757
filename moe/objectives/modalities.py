"""Language modelling of several modalities, each with a weight of its own."""

import dataclasses
from collections.abc import Callable

from moe import bounds
from moe.models.functional import Functional
from moe.objectives.objective import Objective


def by_modality(
  functional: Functional,
  shape: tuple[int, int],
  language: Callable[..., Objective],
  text: float = 1.0,
  image: float = 1.0,
  protein: float = 1.0,
) -> Objective:
  """Makes an objective with a weighted sum of the mean losses of modalities.

  A picture has many more tokens than its caption, so the caption would hardly
  count in a mean over all tokens. CogView gives both the same weight (Ding et
  al. 2021, section 2.3, https://arxiv.org/abs/2105.13290). The modality of a
  loss is the modality of the target: the last token before a picture is text,
  but its target is an image code.

  Args:
    functional: the model's pure functions; each range of ids has its own
      softmax.
    shape: (B, T) of a batch.
    language: makes the objective of a language model. Its mean loss over all
      tokens is replaced.
    text: weight of the mean loss of text, at least 0.
    image: weight of the mean loss of image codes, at least 0.
    protein: weight of the mean loss of residues and structure letters, at least
      0.

  Returns:
    The objective. Its score is still computed from the loss of all tokens.

  Raises:
    ValueError: if a weight is negative, or if the model has one softmax for all
      modalities.
  """
  made = language(functional, shape)
  factors = {}
  for name, weight in (('text', text), ('image', image), ('protein', protein)):
    bounds.within(name, weight, 'the weight of a modality', least=0)
    if f'cross_entropy_{name}' in made.coefficients:
      factors[f'cross_entropy_{name}'] = weight
  if not factors:
    raise ValueError(
      'modalities.by_modality needs a model with a softmax for each range of'
      ' ids, got one softmax: set decoder.Decoder.ranges to run.Data.ranges.'
    )
  coefficients = {**made.coefficients, 'cross_entropy': 0.0, **factors}
  return dataclasses.replace(made, coefficients=coefficients)
