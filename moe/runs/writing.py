"""Writes samples of a trained run: free text or a verse form after a prompt."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moe.infer import decode, forms, kv_cache
from moe.infer.prompts import RowPrompt
from moe.infer.sampling import Sampling
from moe.runs.run import Run, TrainedRun, router_of


class Prompt(NamedTuple):
  """A prompt as tokens, and the rules for the text after it.

  Attributes:
    ids: tokens of the prompt.
    table: int16 [offsets, pieces], the table of allowed tokens that
      `moe.infer.forms` makes.
    limit: the largest number of tokens to write.
  """

  ids: list[int]
  table: np.ndarray
  limit: int


class Sample(NamedTuple):
  """One sample.

  Attributes:
    text: the text, which begins with the prompt.
    is_cut: whether the text stopped at the limit, without an end mark.
  """

  text: str
  is_cut: bool


def check_causal(run: Run, checkpoint: str) -> None:
  """Raises ValueError if the run's router needs later tokens.

  Such a model cannot write text token by token.

  Args:
    run: the run.
    checkpoint: name of the run for the message.
  """
  router = router_of(run)
  if router and not router.is_causal:
    raise ValueError(
      f'{checkpoint} was trained with {type(router).__name__},'
      ' which looks at later tokens and cannot write token by token: score it'
      ' with launch.evaluate, or train with another ROUTER, such as'
      ' @gates.TopK.'
    )


def read_prompt(
  trained: TrainedRun, prompt: str, form: str | None, max_tokens: int | None
) -> Prompt:
  """Encodes a prompt for `write_samples`.

  Args:
    trained: the trained run.
    prompt: text that the sample continues; must not be empty.
    form: verse form of the sample, one of `forms.FORMS`; None for free text.
    max_tokens: the largest number of tokens of free text; None for as many as
      fit into the context after the prompt.

  Raises:
    ValueError: if the prompt is too long, or cannot begin the form.
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
      f'{len(ids)} and up to {wanted}: shorten the prompt or the sample.'
    )
  return Prompt(ids, table, wanted if form or max_tokens else room)


def write_samples(
  trained: TrainedRun,
  beginning: Prompt,
  num_samples: int,
  sampling: Sampling,
  seed: int,
) -> Iterator[Sample]:
  """Yields samples that continue one prompt.

  Args:
    trained: the trained run.
    beginning: the prompt, from `read_prompt`.
    num_samples: number of samples.
    sampling: how tokens are drawn.
    seed: seed of the draws; equal seeds give equal samples.
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
  """Calls `decode.generate` for prompts, on the mesh of the run.

  The prompts are text. Extras, such as rows and columns of a picture, are 0 for
  text.
  """
  return writer(trained, sampling)(prompts, tables, limit, seed)


def writer(
  trained: TrainedRun, sampling: Sampling
) -> Callable[..., list[list[int]]]:
  """Returns a function (prompts, tables, limit, seed) -> ids of the samples.

  Many calls share compiled programs: one for each shape of the prompts.
  """
  functional, mesh = trained.functional, trained.mesh
  layers = functional.cache_shapes(trained.row_parts, 1)
  write_fn = decode.build_writer(
    functional,
    sampling,
    trained.vocabulary.eos,
    kv_cache.shardings(layers, functional.layout, mesh),
    trained.ids.modality,
    'text' if functional.ids else None,
  )
  extras = {
    extra.name: np.zeros((0, *extra.shape), extra.dtype)
    for extra in functional.extras
  }

  def write(
    prompts: Sequence[Sequence[int]],
    tables: Sequence[np.ndarray],
    limit: int,
    seed: int,
  ) -> list[list[int]]:
    with jax.set_mesh(mesh):
      return decode.generate(
        write_fn,
        trained.params,
        trained.state,
        [
          RowPrompt(tokens, table, extras=extras)
          for tokens, table in zip(prompts, tables, strict=True)
        ],
        limit,
        seed,
        trained.row_parts,
      )

  return write
