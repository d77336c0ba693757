"""A number out of range raises an error before the model is traced."""

import pytest

from launch.configs import configuration
from moe.models.anatomy import anatomy

FILES = ['gin_configs/runs/quickstart.gin']


@pytest.mark.parametrize(
  ('bindings', 'sentence'),
  [
    (["DTYPE='float33'"], "DTYPE='float33' must be one of bfloat16"),
    (["DTYPE='int32'"], "DTYPE='int32' must be one of bfloat16"),
    (['D_MODEL=0'], r'D_MODEL=0 must be at least 1 \(the width of the model'),
    (['VOCAB_SIZE=0'], 'VOCAB_SIZE=0 must be at least 1'),
    (['NUM_LAYERS=0'], 'NUM_LAYERS=0 must be at least 1'),
    (['NUM_DENSE_PREFIX=-1'], 'NUM_DENSE_PREFIX=-1 must be at least 0'),
    (['MOE_EVERY=-1'], 'MOE_EVERY=-1 must be at least 0'),
    (
      ['NUM_LAYERS=3', 'MOE_EVERY=2'],
      'NUM_LAYERS=3 less NUM_DENSE_PREFIX=0 must be a multiple of MOE_EVERY=2',
    ),
    (['DROPOUT_RATE=1.0'], 'DROPOUT_RATE=1.0 must be at least 0 and below 1'),
    (['DROPOUT_RATE=-0.5'], 'DROPOUT_RATE=-0.5 must be at least 0'),
    (['NUM_HEADS=0'], 'NUM_HEADS=0 must be at least 1'),
    (['NUM_KV_HEADS=0'], 'NUM_KV_HEADS=0 must be at least 1'),
    (['HEAD_DIM=0'], 'HEAD_DIM=0 must be at least 1'),
    (['MOE_EVERY=2', 'D_FF=0'], 'D_FF=0 must be at least 1'),
    (['NUM_EXPERTS=0'], 'NUM_EXPERTS=0 must be at least 1'),
    (['EXPERT_D_FF=0'], 'EXPERT_D_FF=0 must be at least 1'),
    (['SHARED_D_FF=-1'], 'SHARED_D_FF=-1 must be at least 0'),
    (['GROUP_SIZE=0'], 'GROUP_SIZE=0 must be at least 1'),
    (['CAPACITY_FACTOR=0'], 'CAPACITY_FACTOR=0 must be'),
    (['TOP_K=0'], 'TOP_K=0 must be at least 1'),
    (['TOP_K=9'], 'TOP_K=9 must be at most the 8 experts'),
    (["REMAT='most'"], "REMAT='most' must be one of none, full, dots"),
    (["RULES='odd'"], "RULES='odd' must be one of"),
    (["MOMENT_DTYPE='int4'"], "MOMENT_DTYPE='int4' must be one of"),
    (["ATTENTION_KERNEL='flash'"], "ATTENTION_KERNEL='flash' must be one of"),
    (["ACTIVATION='relu'"], "ACTIVATION='relu' must be one of"),
    (['LOSS_CHUNKS=0'], 'LOSS_CHUNKS=0 must be at least 1'),
    (['LEARNING_RATE=-0.1'], 'LEARNING_RATE=-0.1 must be at least 0'),
    (['WEIGHT_DECAY=-1'], 'WEIGHT_DECAY=-1 must be at least 0'),
    (['LOAD_BALANCE=-1'], 'LOAD_BALANCE=-1 must be at least 0'),
    (['ROUTER_Z=-1'], 'ROUTER_Z=-1 must be at least 0'),
    (
      ['optimizers.adamw.weight_decay=-1'],
      'adamw.weight_decay=-1 must be at least 0',
    ),
    (['CLIP_NORM=-1.0'], 'CLIP_NORM=-1.0 must be at least 0'),
    (
      ['CAPACITY_FACTOR=1e400'],
      'CAPACITY_FACTOR=inf must be above 0 and at mo',
    ),
    (['SEED=4294967296'], 'SEED=4294967296 must be at least 0 and at most'),
    (['SEED=-1'], 'SEED=-1 must be at least 0'),
    (['TRAIN_STEPS=0'], 'TRAIN_STEPS=0 must be at least 1'),
    (['VOCAB_SIZE=1'], 'VOCAB_SIZE=1 must be at least 3'),
    (["FROZEN=('a', '(')"], r"FROZEN='\(' must be a regular expression"),
    (
      ["INITIAL_ASSIGNMENT=(('(', None),)"],
      r"INITIAL_ASSIGNMENT='\(' must be a regular expression",
    ),
    (
      ["language.language_model.router_losses=(('importance', 1e400),)"],
      'language_model.router_losses=inf must be at most',
    ),
  ],
)
def test_a_number_out_of_range_names_the_macro(bindings, sentence):
  with pytest.raises(ValueError, match=sentence) as error:
    configuration.load(FILES, bindings)
  assert '\n' not in str(error.value)


def test_a_number_out_of_range_has_the_place_where_it_was_set(tmp_path):
  path = tmp_path / 'run.gin'
  path.write_text("include 'runs/quickstart.gin'\nWEIGHT_DECAY = -1\n")
  place = f'^{path}:2: WEIGHT_DECAY=-1 must be at least 0'
  with pytest.raises(ValueError, match=place):
    configuration.load([str(path)], [])


def test_ids_of_other_ranges_need_a_larger_vocabulary():
  ranges = ["run.Data.ranges=(('image', 8192),)"]
  # The text range is padded to 128 ids, and 8,192 codes follow: 8,320 in all.
  with pytest.raises(ValueError, match='VOCAB_SIZE=2304 must be at least 8320'):
    configuration.load(FILES, ranges)
  assert configuration.load(FILES, [*ranges, 'VOCAB_SIZE=8320'])


def test_every_kind_of_attention_is_checked():
  files = [
    'models/tiny.gin',
    'models/latent_decoder.gin',
    'parallel/data.gin',
    'tasks/builtin.gin',
    'runs/train.gin',
  ]
  widths = ['QUERY_RANK=8', 'KV_RANK=0', 'CONTENT_DIM=8', 'ROPE_DIM=8']
  more = ['VALUE_DIM=8', 'TRAIN_STEPS=400', 'LEARNING_RATE=0.1']
  with pytest.raises(ValueError, match='KV_RANK=0 must be at least 1'):
    configuration.load(files, widths + more)


def test_what_is_not_in_use_may_be_zero():
  run = configuration.load(
    FILES, ['MOE_EVERY=0', 'NUM_EXPERTS=0', 'EXPERT_D_FF=0']
  )
  assert anatomy(run.model).experts is None
