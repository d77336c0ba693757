"""Which numbers make a model, checked by value before anything is built.

Modules are inert and meet their sizes only when they are traced, where a width
of 0 is a ZeroDivisionError without a name.
"""

import dataclasses
from collections.abc import Iterable

from launch.configs.reach import InEffect
from moe.layers import attention as attention_lib
from moe.layers import feed_forward
from moe.models import stack as stack_lib
from moe.parallel import rules

DTYPES = ('bfloat16', 'float16', 'float32')
# Arguments of functions, which have no fields to look at afterwards: the least
# value, and what it means.
LEAST = {
  'learning_rate': (0, 'the peak of the schedule'),
  'weight_decay': (0, 'part of a matrix taken off, 0 for none'),
  'load_balance': (0, 'a factor of a loss that is made small'),
  'router_z': (0, 'a factor of a loss that is made small'),
  'logits_z': (0, 'a factor of a loss that is made small'),
  'num_chunks': (1, 'pieces in which logits and loss are computed'),
}


def check_values(in_effect: Iterable[InEffect]) -> None:
  """Raises ValueError at the first argument out of range, with its place."""
  for bound in in_effect:
    least, meaning = LEAST.get(bound.argument, (0, ''))
    if not meaning or not isinstance(bound.value, int | float):
      continue
    if not bound.value >= least:  # NaN is none.
      raise ValueError(
        f'{bound.place}: {bound.label}={bound.value} must be at least {least}'
        f' ({meaning}): raise it.'
      )


def check(run) -> None:
  """Raises ValueError at the first number of a run that is out of range.

  Args:
    run: a `moe.runs.run.Run`.
  """
  rules.table(run.rules)  # Checks itself, as the optimizer does.
  run.optimizer(run.schedule)
  model = run.model
  _one_of('DTYPE', model.dtype, DTYPES)
  _at_least(1, 'D_MODEL', model.d_model, 'the width of the model')
  _at_least(1, 'VOCAB_SIZE', model.vocab_size, 'entries of the vocabulary')
  stack = model.stack(parent=None)
  _at_least(1, 'NUM_LAYERS', stack.num_layers, 'blocks of the model')
  _at_least(0, 'NUM_DENSE_PREFIX', stack.num_dense_prefix, 'of these, dense')
  _at_least(0, 'MOE_EVERY', stack.moe_every, '0 makes every block dense')
  _one_of('REMAT', stack.remat, ('none', *stack_lib.REMAT_POLICIES))
  block = stack.block(parent=None)
  if not 0 <= block.dropout_rate < 1:
    raise ValueError(
      f'DROPOUT_RATE={block.dropout_rate} must be at least 0 and below 1: it is'
      ' the share of activations that training sets to 0.'
    )
  attention = block.attention(parent=None)
  _one_of('ATTENTION_KERNEL', attention.kernel, attention_lib.KERNELS)
  for field in dataclasses.fields(attention):
    if field.type is int:  # Heads and widths, whatever the kind of attention.
      value = getattr(attention, field.name)
      least = 0 if field.default == 0 else 1
      _at_least(least, field.name.upper(), value, 'a size of attention')
  if stack.num_dense_prefix or stack.moe_every != 1:
    dense = block.feed_forward(parent=None)
    _at_least(1, 'D_FF', dense.width, 'the width of a dense layer')
    _one_of('ACTIVATION', dense.activation, feed_forward.ACTIVATIONS)
  if stack.moe_every:
    _check_experts(block.moe(parent=None))
  if run.clip_norm < 0:
    raise ValueError(
      f'CLIP_NORM={run.clip_norm} must be at least 0: 0 clips nothing.'
    )


def _check_experts(moe) -> None:
  """The sparse layer's numbers: `moe_layer.MoE`, or one in its place."""
  fields = {field.name: field for field in dataclasses.fields(moe)}
  for name, least, meaning in (
    ('num_experts', 1, 'experts of a layer'),
    ('expert_d_ff', 1, 'the width of an expert'),
    ('shared_d_ff', 0, '0 for no shared expert'),
    ('group_size', 1, 'tokens that are routed together'),
  ):
    if name in fields:
      least = 0 if fields[name].default == 0 else least  # 0 has a meaning.
      _at_least(least, name.upper(), getattr(moe, name), meaning)
  _one_of('ACTIVATION', moe.activation, feed_forward.ACTIVATIONS)
  router = moe.make_router()  # Both check themselves.
  if 'dispatch' in fields:
    moe.dispatch()
    choices = router.num_logits(moe.num_experts)
    if router.num_active > choices:
      raise ValueError(
        f'TOP_K={router.num_active} must be at most the {choices} experts of a'
        ' layer: lower it, or raise NUM_EXPERTS.'
      )


def _one_of(macro: str, value: str, known: Iterable[str]) -> None:
  if value not in known:
    raise ValueError(
      f'{macro}={value!r} must be one of {", ".join(known)}: choose one.'
    )


def _at_least(least: int, macro: str, value: int, meaning: str) -> None:
  if value < least:
    raise ValueError(
      f'{macro}={value} must be at least {least} ({meaning}): raise it.'
    )
