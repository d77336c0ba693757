"""Orders samples by the probability of the prompt, given the sample.

A model that has learnt titles after their poems (task `poems_inverse`) gives
p(title | poem). This probability tells how well a poem fits its title. This is
the inverse direction of Li et al. 2016, https://arxiv.org/abs/1510.03055.
"""

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from moe.evaluate.likelihood import Document
from moe.modalities.text import Vocabulary
from moe.runs import scorecard_scores
from moe.runs.run import TrainedRun
from moe.runs.writing import Sample

_logger = logging.getLogger(__name__)

# The names of inverse tasks end in this. A document of an inverse task is a
# text and then its prompt.
INVERSE = '_inverse'


def document(vocabulary: Vocabulary, prompt: str, sample: str) -> Document:
  """A document of sample, line break, prompt and end mark.

  Only the prompt and the end mark are scored.
  """
  given = len(vocabulary.encode(f'{sample}\n'))
  ids = [*vocabulary.encode(f'{sample}\n{prompt}'), vocabulary.eos]
  weights = np.zeros(len(ids), np.float32)
  weights[given:] = 1
  return Document(
    np.array(ids, np.int32),
    len(prompt),
    len(prompt.encode()),
    weights,
  )


def check_inverse(checkpoint: str, tasks: Sequence[str]) -> None:
  """Raises ValueError unless one of the trained tasks is an inverse task."""
  if not any(task.endswith(INVERSE) for task in tasks):
    raise ValueError(
      f'{checkpoint} must have learnt prompts after their texts to rank samples'
      f' by them, got the tasks {", ".join(tasks)}: train with a task such as'
      ' poems_inverse, as gin_configs/runs/verse_cpu.gin does.'
    )


def reranked(
  trained: TrainedRun, prompt: str, samples: Iterable[Sample]
) -> list[Sample]:
  """Samples after one prompt, the largest log p(prompt | sample) first."""
  samples, prompt = list(samples), prompt.rstrip('\n')
  texts = [sample.text.removeprefix(prompt) for sample in samples]
  nats = prompt_nats(trained, [prompt] * len(samples), texts)
  order = np.argsort(nats, kind='stable')
  for place, number in enumerate(order, start=1):
    _logger.info(f'{place}. log p(prompt | sample) = {-nats[number]:.2f} nats')
  return [samples[number] for number in order]


def prompt_nats(
  trained: TrainedRun, prompts: Sequence[str], samples: Sequence[str]
) -> np.ndarray:
  """-log p(prompt | sample) of each pair, [pairs], in nats.

  Args:
    trained: a run that has learnt an inverse task.
    prompts: the prompts, without a line break at the end.
    samples: the samples, each without its prompt.
  """
  documents = [
    document(trained.vocabulary, prompt.strip(), sample.strip())
    for prompt, sample in zip(prompts, samples, strict=True)
  ]
  return scorecard_scores.nats_of_sides(trained, {'': documents})['']
