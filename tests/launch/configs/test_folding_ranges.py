"""A folding run checks the range of every number when it is loaded."""

import dataclasses
import math

import pytest

from launch.configs import assembly, bindings
from moe.layers.structure import InvariantPointAttention, StructureModule
from moe.models.folding import Folding
from moe.models.folding_block import FoldingBlock
from moe.objectives.folding import Factors, folding
from moe.runs.folding_run import Chains, FoldingRun

WHOLE = {
  Chains: ('crop', 'batch_size', 'longest', 'evaluation_length'),
  Folding: ('num_blocks', 'width', 'pair_width'),
  FoldingBlock: (
    'num_heads',
    'head_dim',
    'triangle_heads',
    'triangle_head_dim',
    'transition_factor',
  ),
  InvariantPointAttention: (
    'num_heads',
    'head_dim',
    'num_query_points',
    'num_value_points',
  ),
  StructureModule: ('num_layers', 'torsion_width'),
  folding: (
    'recycles',
    'clamp_steps',
    'violations_from',
    'violations_full',
  ),
}
OTHERS = {
  Chains: ('hidden',),
  FoldingRun: ('clip_norm',),
  FoldingBlock: ('dropout_rate',),
  StructureModule: ('unit_length',),
  folding: ('clamped',),
  Factors: tuple(field.name for field in dataclasses.fields(Factors)),
}
CASES = [
  (target, argument, value)
  for numbers, values in (
    (WHOLE, (-(10**9), 10**400)),
    (OTHERS, (-1e9, math.inf, math.nan)),
  )
  for target, arguments in numbers.items()
  for argument in arguments
  for value in values
]


@pytest.fixture(scope='module')
def bound():
  return bindings.read(['runs/fold_overfit.gin'], [])


@pytest.mark.parametrize(('target', 'argument', 'value'), CASES)
def test_a_number_out_of_range_is_refused_with_its_place(
  bound, target, argument, value
):
  name = f'{target.__name__}.{argument}'
  one = bindings.Binding(target, argument, value, 'a.gin:1', name)
  changed = bound._replace(bindings=[*bound.bindings, one])
  with pytest.raises(ValueError, match='must be') as error:
    made = assembly.assemble(changed, FoldingRun).run
    made.objective(None, (1, 8))
  assert '=' in str(error.value)
