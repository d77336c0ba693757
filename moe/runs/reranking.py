"""Orders samples by how likely their prompt is after them.

A model that has learnt titles after their poems (task `poems_inverse`) says how
well a poem tells its title. This is the inverse direction of Li et al. 2016,
https://arxiv.org/abs/1510.03055.
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

# How the name of a task ends whose documents are a text and then its prompt.
INVERSE = '_inverse'


def document(vocabulary: Vocabulary, prompt: str, sample: str) -> Document:
  """The sample, which is given, and the prompt with an end mark below it."""
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
  """Raises ValueError unless one of the trained tasks is an inverse one."""
  if not any(task.endswith(INVERSE) for task in tasks):
    raise ValueError(
      f'{checkpoint} must have learnt prompts after their texts to rank samples'
      f' by them, got the tasks {", ".join(tasks)}: train with a task such as'
      ' poems_inverse, as gin_configs/runs/verse_cpu.gin does.'
    )


def reranked(
  trained: TrainedRun, prompt: str, samples: Iterable[Sample]
) -> list[Sample]:
  """Samples after one prompt, in the order of log p(prompt | sample)."""
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
  """-log p(prompt | sample) of every pair, in nats.

  Args:
    trained: a run that has learnt the inverse task.
    prompts: without the line break that ends them.
    samples: without their prompts.
  """
  documents = [
    document(trained.vocabulary, prompt.strip(), sample.strip())
    for prompt, sample in zip(prompts, samples, strict=True)
  ]
  return scorecard_scores.nats_of_sides(trained, {'': documents})['']
