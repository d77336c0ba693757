"""The models that a ladder compares; each one is called an arm."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe import bounds
from moe.models.anatomy import anatomy
from moe.models.decoder import Decoder
from moe.runs.run import Data, Run

# Macros that the ladder binds for each run -> what to use instead.
_OWN = {
  'LEARNING_RATE': 'use --learning_rates',
  'SEED': 'use --seeds',
  'TRAIN_STEPS': 'use --tokens',
  'WARMUP_STEPS': "use --arm='NAME:warmup=0.05', a share of the steps",
  'EVAL_PERIOD': 'drop it',
  'SAVE_PERIOD': 'drop it',
}


class Arm(NamedTuple):
  """One model of a ladder.

  Attributes:
    name: name of the arm and of its directory.
    bindings: gin bindings of its runs, such as 'NUM_EXPERTS=16'.
    seeds: number of runs at its best learning rate.
    warmup: share of the steps in which the learning rate rises.
  """

  name: str
  bindings: tuple[str, ...]
  seeds: int
  warmup: float = 0.01


def arms(
  experts: Sequence[int], bound: Sequence[str], seeds: Sequence[int]
) -> tuple[Arm, ...]:
  """Makes the arms that flags describe; the arms of `experts` come first.

  Args:
    experts: number of experts of each arm; 1 stands for the dense twin, which
      has as many FLOPs per token as the sparse models.
    bound: 'NAME:BINDING;BINDING' for each further arm. 'warmup=SHARE' in place
      of a binding sets `Arm.warmup`.
    seeds: numbers of seeds: one number for all arms, or one for each arm.

  Raises:
    ValueError: if there are fewer than two arms, if an arm cannot be read or
      binds what the ladder binds, or if `seeds` has a number below 1 or the
      wrong length.
  """
  found = [
    Arm('dense', ('DENSE_TWIN=True',), 0)
    if number == 1
    else Arm(f'experts_{number}', (f'NUM_EXPERTS={number}',), 0)
    for number in experts
  ]
  found += [_arm(text) for text in bound]
  if len(found) < 2:
    raise ValueError(
      f'a ladder must have at least two arms to compare, got {len(found)}: add'
      ' --experts=1,16 or --arm.'
    )
  each = list(seeds) * len(found) if len(seeds) == 1 else seeds
  if len(each) != len(found) or min(each) < 1:
    raise ValueError(
      f'--seeds must be one number for all {len(found)} arms or one for each,'
      f' each at least 1, got {",".join(map(str, seeds))}.'
    )
  return tuple(
    arm._replace(seeds=n) for arm, n in zip(found, each, strict=True)
  )


def _arm(text: str) -> Arm:
  """Reads the value of one --arm flag; `seeds` is 0."""
  name, colon, rest = text.partition(':')
  if not colon or not name or '/' in name:
    raise ValueError(
      f'--arm={text} must be a name, a colon and bindings: write'
      " --arm='dense:DENSE_TWIN=True'."
    )
  arm, bindings = Arm(name, (), 0), []
  for binding in filter(None, rest.split(';')):
    bound, _, value = binding.partition('=')
    if bound.strip() == 'warmup':
      arm = arm._replace(warmup=_share(text, value))
    else:
      bindings.append(binding)
  check_free(bindings, f'--arm={text}')
  return arm._replace(bindings=tuple(bindings))


def _share(text: str, value: str) -> float:
  try:
    share = float(value)
  except ValueError as error:
    raise ValueError(
      f'warmup in --arm={text} must be a number, got {value}: write'
      ' warmup=0.05.'
    ) from error
  name = f'warmup in --arm={text}'
  bounds.within(name, share, 'share of the steps', least=0, below=1)
  return share


def check_free(bindings: Sequence[str], source: str) -> None:
  """Checks that gin bindings do not bind what the ladder binds for each run.

  Args:
    bindings: texts 'NAME=VALUE'.
    source: where the bindings come from, for the message.

  Raises:
    ValueError: for a binding that the ladder would override.
  """
  for binding in bindings:
    name = binding.partition('=')[0].strip()
    if name in _OWN:
      raise ValueError(
        f'{source} must not bind {name}, since the ladder sets it for each'
        f' run: {_OWN[name]}.'
      )


def expansion(model: Decoder) -> float:
  """Experts per layer / active experts per token; 1 for a dense model."""
  experts = anatomy(model).experts
  return experts.num_experts / experts.num_active if experts else 1.0


def load(
  wanted: Sequence[Arm], read: Callable[[Sequence[str]], Run]
) -> dict[str, Run]:
  """Reads the runs of all arms, so a wrong binding is found before training.

  Args:
    wanted: the arms.
    read: makes a run from gin bindings.

  Returns:
    name of an arm -> its run.

  Raises:
    ValueError: if a field of `Data` other than `transforms` differs.
  """
  runs = {arm.name: read(arm.bindings) for arm in wanted}
  first, *others = runs
  for name in others:
    for field in dataclasses.fields(Data):
      if field.name == 'transforms':
        continue  # Two equal functions may be different objects.
      one, other = (getattr(runs[n].data, field.name) for n in (first, name))
      if one != other:
        raise ValueError(
          f'all arms must have the same data, got {field.name} {one} in'
          f' {first} and {other} in {name}: bind it for all arms, with a'
          ' --gin. flag.'
        )
  return runs
