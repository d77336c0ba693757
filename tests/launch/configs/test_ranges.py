"""Loading a configuration checks the range of every number that it sets."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import typing

import optax
import pytest

import moe
from launch.configs import assembly, bindings, names, reach
from moe.objectives.objective import Objective
from moe.routing import gates

NUMBERS = (int, float, int | None, float | None)
# Return types of the factories that a configuration can name.
MADE = (optax.Schedule, optax.GradientTransformation, Objective)
# All cases start from this file. Some cases need modules that the quick start
# does not import.
FILE = """include 'runs/quickstart.gin'
from __gin__ import dynamic_registration
from moe.data import transforms
from moe.layers import latent_attention
from moe.layers import soft_moe
from moe.models import parametrisation
from moe.objectives import modalities
"""
WIDTHS = ('num_heads', 'query_rank', 'kv_rank', 'content_dim')
WIDTHS += ('rope_dim', 'value_dim')
SIZES = ['num_experts=%NUM_EXPERTS', 'expert_d_ff=%EXPERT_D_FF']
SCHEDULE = ('learning_rate', 'warmup_steps', 'train_steps')


def schedule(name):
  """Bindings that make a run use a schedule."""
  bound = [f'run.Run.schedule=@schedules.{name}()']
  return bound + [f'schedules.{name}.{a}=%{a.upper()}' for a in SCHEDULE]


def upcycled(name):
  """Bindings that make a run use a method of upcycling."""
  return ["INITIAL_CHECKPOINT='runs/dense'", f'UPCYCLE=@upcycle.{name}()']


# Class or function -> bindings that make a run use it; [] if FILE uses it.
IN_USE = {
  **{name: [f'ROUTER=@gates.{name}'] for name in gates.__all__},
  'Base': ['ROUTER=@gates.Base', 'TOP_K=1'],
  'Hash': ['ROUTER=@gates.Hash'],
  'NullExperts': ['ROUTER=@gates.NullExperts', 'gates.NullExperts.num_null=1'],
  'Switch': ['ROUTER=@gates.Switch', 'TOP_K=1'],
  'TopK': [],
  'Sorted': [],
  'Einsum': ['moe_layer.MoE.dispatch=@dispatch.Einsum'],
  'Ragged': ['moe_layer.MoE.exchange=@exchange.Ragged'],
  'Attention': [],
  'FeedForward': ['NUM_DENSE_PREFIX=1'],
  'LatentAttention': [
    'ATTENTION=@latent_attention.LatentAttention',
    *(f'latent_attention.LatentAttention.{width}=8' for width in WIDTHS),
  ],
  'MoE': [],
  'Rope': [],
  'SoftMoE': [
    'block.Block.moe=@soft_moe.SoftMoE',
    *(f'soft_moe.SoftMoE.{size}' for size in SIZES),
  ],
  'Block': [],
  'Decoder': [],
  'Stack': [],
  'language_model': [],
  'by_modality': [
    'run.Run.objective=@modalities.by_modality',
    'modalities.by_modality.language=@language.language_model',
    "decoder.Decoder.ranges=(('image', 100),)",
    "run.Data.ranges=(('image', 100),)",
  ],
  'adamw': [],
  'adafactor': ['OPTIMIZER=@optimizers.adafactor'],
  'muon': ['OPTIMIZER=@optimizers.muon'],
  'CompleteP': [
    'PARAMETRISATION=@parametrisation.CompleteP()',
    'parametrisation.CompleteP.base_width=64',
    'parametrisation.CompleteP.base_depth=2',
  ],
  'rsqrt': schedule('rsqrt'),
  'cosine': schedule('cosine'),
  'wsd': [],
  'MeshShape': [],
  'DropCondition': [
    "run.Data.transforms=(('a', @transforms.DropCondition()),)"
  ],
  'ReadPatches': ["run.Data.transforms=(('a', @transforms.ReadPatches()),)"],
  'MaskBlocks': ["run.Data.transforms=(('a', @transforms.MaskBlocks()),)"],
  'Noise': upcycled('Noise'),
  'Drop': upcycled('Drop'),
  'Settings': [],
  'Data': [],
  'Run': [],
}
# Classes and functions with numbers that the configuration of a `Run` never
# sets.
NOT_SET = {
  # The first three are base classes of routers; Soft MoE's `Mixing` replaces a
  # router.
  *('Router', 'TokenChoice', 'Wrapper', 'Mixing'),
  *('AttentionAnatomy', 'FeedForwardAnatomy', 'ExpertsAnatomy', 'Anatomy'),
  *(
    'Embedding',
    'ExtraEmbedding',
    'Patches',
    'OutputHead',
    'RMSNorm',
    'Objective',
    'scale_by_adam',
  ),
  *(
    'PackPlan',
    'Counts',
    'IdSpace',
    'TrainedRun',
    'ScoringRequest',
    'Attempt',
    'Job',
    'Limits',
    'Ladder',
    # Folding models have another kind of run: see test_folding_ranges.py.
    'StructureModule',
    'TorsionAngles',
    'InvariantPointAttention',
    'TriangleMultiplication',
    'GatedAttention',
    'TriangleAttention',
    'PairTransition',
    'PairTable',
    'SequenceToPair',
    'FoldingBlock',
    'Folder',
    'Folding',
    'folding',
    'Factors',
    'Chains',
    'FoldingRun',
    'FoldingModel',
    # Image tokenizers have another kind of run. Its classes check themselves.
    'image_codes',
    'Pictures',
    'ImageTokenizer',
    # Only command-line flags set the fields of these classes. The classes check
    # the values when they are made.
    'Asked',
    'Drawing',
    'Request',
    # This is the run of an image tokenizer.
    'TokenizerRun',
  ),
}


def hints_of(target):
  """Annotations of a class or function; {} if they cannot be resolved."""
  try:
    return typing.get_type_hints(target)
  except NameError:  # Only type checkers import this name.
    return {}


def is_configurable(target, module):
  """Whether `target` is a dataclass or a factory that the module defines."""
  if getattr(target, '__module__', None) != module:
    return False
  if inspect.isclass(target) and not target.__name__.startswith('_'):
    return dataclasses.is_dataclass(target)
  is_function = inspect.isfunction(target) and target.__name__[0] != '_'
  return is_function and hints_of(target).get('return') in MADE


def configurables():
  """Name -> (class or function that a run can use, its numeric arguments)."""
  found = {}
  for info in pkgutil.walk_packages(moe.__path__, 'moe.'):
    package = info.name.split('.')[1]
    # No gin file sets arguments in these packages.
    if package in ('planning', 'report', 'scale', 'evaluate', 'infer'):
      continue
    if info.name == 'moe.data.cache':
      continue
    for name, target in vars(importlib.import_module(info.name)).items():
      if is_configurable(target, info.name):
        numbers = [
          n
          for n in names.parameters(target)
          if hints_of(target).get(n) in NUMBERS and n not in reach.GIVEN
        ]
        if numbers:
          found[name] = target, numbers
  return found


FOUND = configurables()
CASES = [
  (name, argument)
  for name, (_, arguments) in FOUND.items()
  if name in IN_USE
  for argument in arguments
]


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  path = tmp_path_factory.mktemp('gin') / 'run.gin'
  path.write_text(FILE)
  return str(path)


def made(base, name, *more):
  """Makes a configuration that uses `name`, with further bindings `more`."""
  bound = bindings.read([base], IN_USE[name])
  return assembly.assemble(bound._replace(bindings=[*bound.bindings, *more]))


def test_every_class_with_a_number_is_known_here():
  assert FOUND.keys() <= IN_USE.keys() | NOT_SET


@pytest.mark.parametrize('name', [n for n in IN_USE if n in FOUND])
def test_what_makes_a_run_use_it_is_no_mistake(base, name):
  assert made(base, name).run


@pytest.mark.parametrize(('name', 'argument'), CASES)
def test_a_number_out_of_range_is_refused_with_its_place(base, name, argument):
  target, _ = FOUND[name]
  is_whole = hints_of(target)[argument] in (int, int | None)
  wrong = [-(10**9), 10**400] if is_whole else [-1e9, math.inf, math.nan]
  for value in wrong:
    binding = bindings.Binding(target, argument, value, 'a.gin:1', name)
    with pytest.raises(ValueError, match='must be') as error:
      made(base, name, binding)
    assert str(error.value).startswith(f'a.gin:1: {name}.{argument}=')
