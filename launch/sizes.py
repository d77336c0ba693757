"""Which numbers make a model, checked by value before anything is built.

Modules are inert and meet their sizes only when they are traced, where a width
of 0 is a ZeroDivisionError without a name.
"""

import dataclasses

DTYPES = ('bfloat16', 'float16', 'float32')


def check(run) -> None:
  """Raises ValueError at the first number of a run that is out of range.

  Args:
    run: a `launch.config.Run`.
  """
  model = run.model
  _check_dtype(model.dtype)
  _at_least(1, 'D_MODEL', model.d_model, 'the width of the model')
  _at_least(1, 'VOCAB_SIZE', model.vocab_size, 'entries of the vocabulary')
  stack = model.stack(parent=None)
  _at_least(1, 'NUM_LAYERS', stack.num_layers, 'blocks of the model')
  _at_least(0, 'NUM_DENSE_PREFIX', stack.num_dense_prefix, 'of these, dense')
  _at_least(0, 'MOE_EVERY', stack.moe_every, '0 makes every block dense')
  block = stack.block(parent=None)
  if not 0 <= block.dropout_rate < 1:
    raise ValueError(
      f'DROPOUT_RATE={block.dropout_rate} must be at least 0 and below 1: it is'
      ' the share of activations that training sets to 0.'
    )
  attention = block.attention(parent=None)
  for field in dataclasses.fields(attention):
    if field.type is int:  # Heads and widths, whatever the kind of attention.
      value = getattr(attention, field.name)
      least = 0 if field.default == 0 else 1
      _at_least(least, field.name.upper(), value, 'a size of attention')
  if stack.num_dense_prefix or stack.moe_every != 1:
    width = block.feed_forward(parent=None).width
    _at_least(1, 'D_FF', width, 'the width of a dense layer')
  if stack.moe_every:
    _check_experts(block.moe(parent=None))
  if run.clip_norm < 0:
    raise ValueError(
      f'CLIP_NORM={run.clip_norm} must be at least 0: 0 clips nothing.'
    )


def _check_experts(moe) -> None:
  _at_least(1, 'NUM_EXPERTS', moe.num_experts, 'experts of a layer')
  _at_least(1, 'EXPERT_D_FF', moe.expert_d_ff, 'the width of an expert')
  _at_least(0, 'SHARED_D_FF', moe.shared_d_ff, '0 for no shared expert')
  _at_least(1, 'GROUP_SIZE', moe.group_size, 'tokens that are routed together')
  moe.dispatch()  # Both check themselves.
  moe.make_router()


def _check_dtype(name: str) -> None:
  if name not in DTYPES:
    raise ValueError(
      f'DTYPE={name!r} must be one of {", ".join(DTYPES)}: choose the one to'
      ' compute in.'
    )


def _at_least(least: int, macro: str, value: int, meaning: str) -> None:
  if value < least:
    raise ValueError(
      f'{macro}={value} must be at least {least} ({meaning}): raise it.'
    )
