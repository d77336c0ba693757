"""Lets lm-evaluation-harness use a trained run, as its model `wudao`.

The harness asks the model for likelihoods and samples, and computes the scores
itself: https://github.com/EleutherAI/lm-evaluation-harness, version 0.4.13.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from launch.configs import configuration
from moe.evaluate import choices
from moe.evaluate.choices import Answer, Request
from moe.evaluate.likelihood import Document
from moe.infer.sampling import Sampling
from moe.runs import scorecard_scores, writing

# Maximum number of new tokens in an answer if a task sets no limit. It is also
# the default of the harness's own models.
MAX_TOKENS = 256


class Wudao(LM):
  """A trained run that answers the requests of the harness.

  Attributes:
    trained: the run with its parameters and vocabulary.
  """

  def __init__(self, checkpoint: str, **ignored: Any):
    """Reads a checkpoint.

    Args:
      checkpoint: work directory of a run, or one step in its checkpoints.
      **ignored: batch size and device, which the harness passes to every model.
    """
    super().__init__()
    del ignored
    self.trained = configuration.load_run(checkpoint)

  @property
  def tokenizer_name(self) -> str:
    """SHA-256 of the vocabulary; the harness uses it as a key of its cache."""
    return self.trained.vocabulary.sha256

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Per request: (log-likelihood of the continuation, whether it is greedy).

    A continuation is greedy if each of its tokens is the most likely one.
    """
    vocabulary = self.trained.vocabulary
    answers = self._answer(
      [
        choices.request_document(vocabulary, Request(*request.args))
        for request in requests
      ],
      disable_tqdm,
    )
    return [(-answer.nats, answer.is_greedy) for answer in answers]

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihood of each whole text, without an end mark."""
    documents = []
    for request in requests:
      (text,) = request.args
      ids = np.array(self.trained.vocabulary.encode(text), np.int32)
      documents.append(Document(ids, len(text), len(text.encode())))
    answers = self._answer(documents, disable_tqdm, choices.rolling_windows)
    return [-answer.nats for answer in answers]

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """The text that the model writes after each context, up to a stop string.

    The new text has at most half as many tokens as the model can read. If
    context and new text do not fit together, the context loses its beginning.
    """
    del disable_tqdm
    writing.check_causal(self.trained.run, self.trained.workdir)
    texts = [''] * len(requests)
    for settings, places in _by_settings(requests).items():
      until, limit, sampling = settings
      limit = min(limit, self.trained.run.data.sequence_length // 2)
      written = scorecard_scores.short_answers(
        self.trained,
        writing.writer(self.trained, sampling),
        [requests[place].args[0] for place in places],
        limit,
        stops=until,
      )
      for place, text in zip(places, written, strict=True):
        texts[place] = text
    return texts

  def _answer(
    self, documents: Sequence[Document], is_quiet: bool, *windows: Any
  ) -> list[Answer]:
    trained = self.trained
    show = scorecard_scores.progress('requests')
    with jax.set_mesh(trained.mesh):
      return choices.answer_requests(
        trained.functional,
        trained.params,
        trained.state,
        documents,
        scorecard_scores.context_of(trained),
        (lambda done, total: None) if is_quiet else show,
        *windows,
      )


def _by_settings(
  requests: Sequence[Instance],
) -> dict[tuple[tuple[str, ...], int, Sampling], list[int]]:
  """Groups requests: (stop strings, token limit, sampling) -> their indices."""
  found = {}
  for place, request in enumerate(requests):
    wanted = request.args[1]
    until = wanted.get('until') or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    temperature = wanted.get('temperature', 1.0)
    if not wanted.get('do_sample', False):
      temperature = 0
    limit = wanted.get('max_gen_toks', MAX_TOKENS)
    key = until, limit, Sampling(temperature, top_p=wanted.get('top_p', 1.0))
    found.setdefault(key, []).append(place)
  return found
