"""Text that a trained run writes after a prompt, free or in a verse form."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moe.infer import decode, forms, kv_cache
from moe.infer.sampling import Sampling
from moe.runs.run import Run, TrainedRun, router_of


class Beginning(NamedTuple):
  """What a sample begins with, and what it may become.

  Attributes:
    ids: tokens of the prompt.
    table: jump table that every sample keeps to, as `forms` makes it.
    limit: the most tokens to write.
  """

  ids: list[int]
  table: np.ndarray
  limit: int


class Sample(NamedTuple):
  """One text, prompt included.

  Attributes:
    text: all of it.
    is_cut: whether it had to stop before its end.
  """

  text: str
  is_cut: bool


def check_causal(run: Run, checkpoint: str) -> None:
  """Raises ValueError if the run's router can't go token by token.

  Args:
    run: the run.
    checkpoint: the name that the message gives it.
  """
  router = router_of(run)
  if router and not router.is_causal:
    raise ValueError(
      f'{checkpoint} was trained with {type(router).__name__},'
      ' which looks at later tokens and cannot write token by token: score with'
      ' launch.evaluate, or train with another ROUTER, such as @gates.TopK.'
    )


def begin(
  trained: TrainedRun, prompt: str, form: str | None, max_tokens: int | None
) -> Beginning:
  """Reads a prompt.

  Args:
    trained: the run.
    prompt: text to write after, not empty.
    form: one of `forms.FORMS`, which the sample fills; None for free text.
    max_tokens: the most tokens of free text; None for what the context leaves.

  Raises:
    ValueError: if the prompt is too long, or cannot start the form.
  """
  vocabulary = trained.vocabulary
  pieces = forms.pieces_of(vocabulary)
  if form:
    prompt = prompt.rstrip('\n')
    template = forms.template(form, prompt)
    prompt += '\n'
    table = forms.form_table(pieces, vocabulary.eos, template)
    wanted = len(table)
  else:
    table = forms.free_table(pieces, vocabulary.eos)
    wanted = max_tokens or 1
  ids = vocabulary.encode(prompt)
  length = trained.run.data.sequence_length
  room = length - len(ids)
  if room < wanted:
    raise ValueError(
      f'prompt and sample must fit into the context of {length} tokens, got '
      f'{len(ids)} and up to {wanted}: shorten the prompt, or write less.'
    )
  return Beginning(ids, table, wanted if form or max_tokens else room)


def write(
  trained: TrainedRun,
  beginning: Beginning,
  num_samples: int,
  sampling: Sampling,
  seed: int,
) -> Iterator[Sample]:
  """Writes samples after one beginning.

  Args:
    trained: the run.
    beginning: of every sample.
    num_samples: so many.
    sampling: how tokens are drawn.
    seed: the same one gives the same samples.
  """
  ids, table, limit = beginning
  written = generate(
    trained, sampling, [ids] * num_samples, [table] * num_samples, limit, seed
  )
  eos = trained.vocabulary.eos
  for tokens in written:
    text = trained.vocabulary.decode([*ids, *tokens])
    yield Sample(text, is_cut=tokens[-1] != eos)


def generate(
  trained: TrainedRun,
  sampling: Sampling,
  prompts: Sequence[Sequence[int]],
  tables: Sequence[np.ndarray],
  limit: int,
  seed: int,
) -> list[list[int]]:
  """What `decode.generate` writes after prompts, on the mesh of the run.

  The prompts are text, whose tokens have no row or the like: extras are 0.
  """
  functional, mesh = trained.functional, trained.mesh
  layers = functional.cache_shapes(trained.row_parts, 1)
  write_fn = decode.build_writer(
    functional,
    sampling,
    trained.vocabulary.eos,
    kv_cache.shardings(layers, functional.layout, mesh),
    trained.ids.modality,
  )
  with jax.set_mesh(mesh):
    return decode.generate(
      write_fn,
      trained.params,
      trained.state,
      prompts,
      tables,
      limit,
      seed,
      trained.row_parts,
      extras={
        extra.name: [np.zeros((0, *extra.shape), extra.dtype)] * len(prompts)
        for extra in functional.extras
      },
    )
