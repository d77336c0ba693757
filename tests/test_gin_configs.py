"""Reads the files of gin_configs, and builds their models from shapes."""

import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from launch import models
from launch.configs import configuration
from moe import axes
from moe.modalities import residues
from moe.objectives import folding, language
from moe.optim import matrices
from moe.parallel import shardings
from moe.planning import model_table, plan
from moe.runs import build, training
from moe.runs.counts import flops_of, reserved_experts
from moe.scale import cost

ROOT = pathlib.Path(__file__).parents[1] / 'gin_configs'
# Parts of models and of runs. Other files include them, or a user gives them as
# a further --gin_file. They may exceed the 60 lines of a model file.
WIRING = {
  'models/decoder.gin',
  'models/folding.gin',
  'models/trunk.gin',
  'models/latent_decoder.gin',
  'runs/train.gin',
  'runs/muon.gin',
  'runs/recipe.gin',
  'runs/image_tokenizer.gin',
  'runs/pictures.gin',
  'runs/patches.gin',
  'runs/pictures_larger.gin',
  *(f'runs/routing_{n}.gin' for n in ('blind', 'grouped', 'limoe')),
  'runs/folding.gin',
}
# Runs of image tokenizers, which have other macros.
TOKENIZERS = [
  f'runs/image_tokenizer_{n}.gin'
  for n in ('emoji', 'fashion', 'gpu', 'hanzi', 'pictures', 'shapes')
]
# Models that fold proteins, and their runs.
FOLDERS = [f'models/fold_{n}.gin' for n in ('nano', 'tiny', 'small')]
FOLDERS.append('models/esmfold_690m.gin')
FOLDING_RUNS = [f'runs/fold_{n}.gin' for n in ('cpu', 'gpu', 'overfit')]
FOLDING_RUNS.append('runs/esmfold_v5p_16.gin')
# Our own models for experiments. They are compared with their dense twins, and
# the other models with published numbers of parameters.
LADDER = [f'models/{n}.gin' for n in ('tiny', 'small', 'base', 'large', 'xl')]
# Runs for large slices -> overrides that make them fit 8 devices.
ON_FEWER_DEVICES = {
  'runs/wudao2_v5p_2048.gin': ['MESH_FSDP=1', 'MESH_EXPERT=8'],
  'runs/wudao2_2x_v5p_2048.gin': ['MESH_FSDP=1', 'MESH_EXPERT=4'],
  'runs/wudao2_pictures_v5p_2048.gin': ['MESH_FSDP=1', 'MESH_EXPERT=8'],
  'runs/wudao2_v5p_256.gin': ['MESH_EXPERT=8'],
  'runs/wudao2_v5p_128.gin': ['MESH_EXPERT=8'],
  'runs/wudao2_tpu7x_128.gin': ['MESH_EXPERT=8'],
}
# Run -> number of devices, if it is not the 8 of the tests.
NUM_DEVICES = {
  f'runs/{n}_cpu.gin': 1
  for n in (
    'chains',
    'chains_masked',
    'emoji',
    'hanzi',
    'pictures',
    'pictures_poems',
    'pictures_recipe',
    'poems',
    'poems_recipe',
    'verse',
    'zh_en',
  )
}
REST = ['parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin']
STEPS = ['TRAIN_STEPS=200', 'LEARNING_RATE=0.1']


def files(folder):
  found = sorted(f'{folder}/{p.name}' for p in (ROOT / folder).glob('*.gin'))
  others = {*WIRING, *TOKENIZERS, *FOLDERS, *FOLDING_RUNS}
  return [name for name in found if name not in others]


def stack(run):
  return run.model.stack(parent=None)


def block(run):
  return stack(run).block(parent=None)


def attention(run):
  return block(run).attention(parent=None)


def moe(run):
  return block(run).moe(parent=None)


# Macro -> (a value that no tested file has, function that reads the attribute
# that must get this value).
MODEL_MACROS = {
  'D_MODEL': (48, lambda run: run.model.d_model),
  'NUM_LAYERS': (62, lambda run: stack(run).num_layers),
  'NUM_HEADS': (6, lambda run: attention(run).num_heads),
  'NUM_KV_HEADS': (3, lambda run: attention(run).num_kv_heads),
  'HEAD_DIM': (10, lambda run: attention(run).head_dim),
  'D_FF': (24, lambda run: block(run).feed_forward(parent=None).width),
  'MOE_EVERY': (5, lambda run: stack(run).moe_every),
  'NUM_DENSE_PREFIX': (7, lambda run: stack(run).num_dense_prefix),
  'NUM_EXPERTS': (12, lambda run: moe(run).num_experts),
  'TOP_K': (4, lambda run: moe(run).anatomy().router.num_active),
  'EXPERT_D_FF': (20, lambda run: moe(run).expert_d_ff),
  'CAPACITY_FACTOR': (1.75, lambda run: moe(run).dispatch().capacity_factor),
  'VOCAB_SIZE': (99_999, lambda run: run.model.vocab_size),
}
RUN_MACROS = {
  'TRAIN_STEPS': (12_345, lambda run: run.settings.train_steps),
  'BATCH_SIZE': (40, lambda run: run.data.batch_size),
  'SEQUENCE_LENGTH': (72, lambda run: run.data.sequence_length),
  'SEED': (11, lambda run: run.settings.seed),
  'EVAL_PERIOD': (13, lambda run: run.settings.eval_period),
  'SAVE_PERIOD': (17, lambda run: run.settings.save_period),
}
LAYOUT_MACROS = {
  'MESH_DATA': (3, lambda run: run.mesh.data),
  'MESH_FSDP': (5, lambda run: run.mesh.fsdp),
  'MESH_EXPERT': (7, lambda run: run.mesh.expert),
  'MESH_CONTEXT': (11, lambda run: run.mesh.context),
  'MESH_MODEL': (9, lambda run: run.mesh.model),
  'NUM_SLICES': (3, lambda run: run.mesh.num_slices),
}


# The macros of latent attention, which replace those of key and value heads.
LATENT_MACROS = {
  'QUERY_RANK': (22, lambda run: attention(run).query_rank),
  'KV_RANK': (14, lambda run: attention(run).kv_rank),
  'CONTENT_DIM': (26, lambda run: attention(run).content_dim),
  'ROPE_DIM': (18, lambda run: attention(run).rope_dim),
  'VALUE_DIM': (34, lambda run: attention(run).value_dim),
}


@functools.cache
def describe(name):
  path = models.FOLDER / f'{name}.gin'
  return model_table.table_row(path, models.loaded(name))


def check_macros(names, macros, overrides=()):
  """Checks that each macro is read and its value arrives where it belongs."""
  for macro, (value, arrives) in macros.items():
    run = configuration.load(names, [*overrides, f'{macro}={value}'])
    assert float(arrives(run)) == pytest.approx(value), macro


@pytest.mark.parametrize('name', files('models'))
def test_a_model_has_all_sizes_as_macros(name):
  macros = dict(MODEL_MACROS)
  if 'latent_decoder' in (ROOT / name).read_text():
    del macros['NUM_KV_HEADS'], macros['HEAD_DIM']
    macros |= LATENT_MACROS
  text = (ROOT / name).read_text()
  if 'gates.Switch' in text or 'gates.Base' in text:
    del macros['TOP_K']  # The router of this model always chooses 1 expert.
  # No two values are equal, so one run can check all macros.
  values = [f'{macro}={value}' for macro, (value, _) in macros.items()]
  run = configuration.load([name, *REST], [*STEPS, *values])
  for macro, (value, arrives) in macros.items():
    assert float(arrives(run)) == pytest.approx(value), macro


@pytest.mark.parametrize('name', ['tiny', 'deepseek_v3_671b'])
def test_the_batch_dims_of_matrices_are_layers_and_experts(name):
  names = [f'models/{name}.gin', *REST]
  more = ['SHARED_D_FF=16', 'TIE_EMBEDDINGS=False', 'PREDICTS_AHEAD=True']
  params, logical = model_table.shapes(configuration.load(names, STEPS + more))
  others = set()
  for (path, leaf), names in zip(
    jax.tree_util.tree_flatten_with_path(params)[0],
    jax.tree.leaves(logical, is_leaf=lambda a: isinstance(a, tuple)),
    strict=True,
  ):
    name = shardings.path_name(path)
    matrix = matrices.matrix_of(name, leaf.shape)
    if matrix is None:
      others.add(name.rsplit('/', 1)[-1])
      continue
    batch = names[: matrix.num_batch]
    assert set(batch) <= {axes.LAYERS, axes.EXPERT}, name
    assert not {axes.LAYERS, axes.EXPERT} & set(names[len(batch) :]), name
  assert others == {'table', 'router', 'scale'}


@pytest.mark.parametrize('name', files('models'))
def test_a_model_file_is_short(name):
  lines = (ROOT / name).read_text().splitlines()
  assert len(lines) <= 60
  assert max(len(line) for line in lines) <= 80


@pytest.mark.parametrize('name', files('runs'))
def test_a_run_has_its_numbers_as_macros(name):
  check_macros([name], RUN_MACROS)
  rates = [
    configuration.load([name], [f'LEARNING_RATE={rate}']).schedule(
      np.arange(0, 9900, 100)
    )
    for rate in (0.5, 1.0)
  ]
  np.testing.assert_allclose(2 * rates[0], rates[1], rtol=1e-6)
  assert rates[1].max() > 0.1


@pytest.mark.parametrize('name', TOKENIZERS)
def test_the_run_of_a_tokenizer_is_built_by_shapes(name):
  run = configuration.read([name], ['BATCH_SIZE=8', 'SEED=5']).run
  program = run.program()
  assert run.settings.seed == 5 and program.mesh.size == 8
  side = 64 if 'emoji' in name else 32
  assert program.batch_shapes['pictures'].shape == (8, side, side, 3)
  assert run.model.grid(side, side) == (side // 4, side // 4)
  with pytest.raises(ValueError, match='must describe a language model'):
    configuration.load([name], [])


def folding_parameters(name):
  """Path -> number of parameters of a folding model."""
  files = [name, 'parallel/data.gin', 'runs/folding.gin']
  sizes = ['CROP=8', 'BATCH_SIZE=1', 'TRAIN_STEPS=200', "CHAINS=('chains',)"]
  run = configuration.read(files, sizes).run
  functional, _, mesh = run.functional(jax.devices()[:1])
  shapes = jax.tree.map(
    lambda f: jax.ShapeDtypeStruct(f.shape, f.dtype), folding.fields(1, 8)
  )
  with jax.set_mesh(mesh):
    params = jax.eval_shape(
      lambda: functional.init(jax.random.key(0), shapes)[0]
    )
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return {shardings.path_name(path): leaf.size for path, leaf in flat}


@pytest.mark.parametrize('name', FOLDERS)
def test_a_folding_model_is_built_by_shapes(name):
  found = folding_parameters(name)
  assert any(path.startswith('trunk/') for path in found)
  assert any('triangles' in path for path in found)


def test_esmfold_has_the_parameters_of_the_paper_beside_its_trunk():
  found = folding_parameters('models/esmfold_690m.gin')
  total = sum(n for path, n in found.items() if not path.startswith('trunk/'))
  assert math.isclose(total, 690e6, rel_tol=0.03)


@pytest.mark.parametrize('name', FOLDING_RUNS)
def test_a_folding_run_has_its_numbers_as_macros(name):
  macros = [
    'TRAIN_STEPS=123',
    'WARMUP_STEPS=10',
    'BATCH_SIZE=8',
    'CROP=40',
    'SEED=5',
    'RECYCLES=2',
  ]
  run = configuration.read([name], [*macros, 'MESH_DATA=1']).run
  assert run.settings.train_steps == 123 and run.settings.seed == 5
  assert run.data.batch_size == 8 and run.data.crop == 40
  assert run.objective.keywords['recycles'] == 2
  with pytest.raises(ValueError, match='must describe a language model'):
    configuration.load([name], [])


@pytest.mark.slow
@pytest.mark.parametrize('name', FOLDING_RUNS)
def test_a_folding_run_is_built_by_shapes(name):
  alone = ['MESH_DATA=1', 'MESH_FSDP=1', 'MESH_EXPERT=1', 'BATCH_SIZE=1']
  run = configuration.read([name], alone).run
  program = run.program(jax.devices()[:1])
  assert program.batch_shapes['tokens'].shape == (1, run.data.crop)


def test_masked_modelling_hides_15_percent_and_3di_letters_all():
  for name, task, fraction in (
    ('chains_masked_cpu', 'proteins_masked', 0.15),
    ('chains_cpu', 'proteins_3di_at_once', 1.0),
  ):
    data = configuration.load([f'runs/{name}.gin'], []).data
    assert [(t, m.fraction) for t, m in data.transforms] == [(task, fraction)]


@pytest.mark.parametrize('name', ['chains_cpu', 'chains_masked_cpu'])
def test_arms_of_chains_compute_equal_rows_of_all_tokens(name):
  load = lambda *more: configuration.load([f'runs/{name}.gin'], more)
  grouped, blind = load(), load('ROUTER=@gates.TopK')
  sizes = moe(grouped).anatomy()
  assert all(moe(r).anatomy().dispatch.is_dropless for r in (grouped, blind))
  # No expert is idle: those that are not reserved are open to all modalities.
  assert sizes.router.reserved == (4, 0, 10) and sizes.num_experts == 16
  for run in (grouped, blind):
    twin = moe(run).anatomy().dense_twin()
    (layer,) = load('DENSE_TWIN=True').model.anatomy().period
    assert layer.feed_forward == twin


def test_the_ids_of_wudao_are_text_codes_and_residues():
  run = configuration.load(['runs/wudao2_pictures_v5p_2048.gin'], [])
  model = run.model
  sizes = {name: size for name, size in model.ids.sizes.items() if size}
  assert list(sizes) == ['text', 'command', 'image', 'residue']
  assert (sizes['text'], sizes['image']) == (143_616, 32 * 32 * 8)
  assert sizes['residue'] == residues.NUM_CODES
  assert model.ids.size == model.vocab_size == 152_064
  # The log has the loads of text, pictures and proteins.
  assert moe(run).num_modalities == 3


def test_a_run_states_the_experts_that_it_reserves():
  run = configuration.load(['runs/pictures_cpu.gin'], [])
  wanted = {'experts_reserved_text': 4, 'experts_reserved_image': 12}
  assert reserved_experts(run) == wanted
  blind = configuration.load(
    ['runs/pictures_cpu.gin', 'runs/routing_blind.gin'], []
  )
  assert reserved_experts(blind) == {}


@pytest.mark.parametrize(
  ('name', 'router', 'losses'),
  [
    ('blind', 'TopK', ()),
    ('grouped', 'ModalityGrouped', ()),
    ('limoe', 'TopK', (('local_entropy', 0.04), ('global_entropy', 0.04))),
  ],
)
def test_a_further_file_chooses_the_experts_of_pictures(name, router, losses):
  files = ['runs/pictures_cpu.gin', f'runs/routing_{name}.gin']
  run = configuration.load(files, [])
  assert type(moe(run).anatomy().router).__name__ == router
  options = run.objective.keywords['language'].keywords
  assert tuple(options.get('router_losses', ())) == losses
  assert options['logits_z'] == 1e-4


# Runs that draw and describe pictures.
PICTURES = [
  name
  for name in files('runs')
  if any(part in name for part in ('pictures', 'emoji', 'hanzi'))
]


@pytest.mark.parametrize('name', PICTURES)
def test_text_pays_for_no_image_logits_and_both_have_a_z_loss(name):
  run = configuration.load([name], [])
  options = run.objective.keywords['language'].keywords
  chunks = options['num_chunks']
  assert chunks > 1 and run.data.sequence_length % chunks == 0
  assert options['logits_z'] == 1e-4


@pytest.mark.parametrize('name', files('parallel'))
def test_a_layout_has_its_axes_as_macros(name):
  names = ['models/tiny.gin', name, 'tasks/builtin.gin', 'runs/train.gin']
  check_macros(names, LAYOUT_MACROS, STEPS)


@pytest.mark.parametrize('name', files('tasks'))
def test_a_task_file_completes_a_run(name):
  names = ['models/tiny.gin', 'parallel/data.gin', name, 'runs/train.gin']
  run = configuration.load(names, STEPS)
  assert run.data.train and run.data.evaluation


@pytest.mark.slow
@pytest.mark.parametrize('name', files('runs'))
def test_a_run_is_built_by_shapes(name):
  devices = jax.devices()[: NUM_DEVICES.get(name, 8)]
  run = configuration.load([name], ON_FEWER_DEVICES.get(name, []))
  program = build.build(run, devices)
  counts, peak = flops_of(run, program)
  assert program.mesh.size == len(devices)
  assert counts['params_total'] >= counts['params_active'] > 0
  assert peak is None  # A CPU has no published peak.
  assert f'{counts["params_active"]:,}' in training.describe(program, counts)


SOFT = """include 'models/tiny.gin'
from __gin__ import dynamic_registration
from moe.layers import soft_moe
from moe.models import block
block.Block.moe = @soft_moe.SoftMoE
soft_moe.SoftMoE.num_experts = %NUM_EXPERTS
soft_moe.SoftMoE.expert_d_ff = %EXPERT_D_FF
soft_moe.SoftMoE.top_k = %TOP_K
"""


def test_another_sparse_layer_takes_the_place_of_the_usual_one(tmp_path):
  path = tmp_path / 'soft.gin'
  path.write_text(SOFT)
  run = configuration.load([str(path), *REST], STEPS)
  assert type(moe(run)).__name__ == 'SoftMoE'
  program = build.build(run, jax.devices()[:1])
  total = flops_of(run, program)[0]['params_total']
  assert total > 8 * 3 * 128 * 128  # The experts of one layer have so many.
  facts = plan.plan_shapes(run)
  assert facts['drop_rate_cv03'] == 0  # Nothing is sent, so nothing is dropped.


def shapes_of(run, devices):
  """(shapes of the parameters, their logical axes, rule table, mesh)."""
  functional, table, mesh = build.place_model(run, devices)
  found = {}

  def init(key):
    shapes = language.batch_shapes(8, 128, functional.extras)
    params, _, found['axes'] = functional.init(key, shapes)
    return params

  with jax.set_mesh(mesh):
    params = jax.eval_shape(init, jax.random.key(0))
  return params, found['axes'], table, mesh


# Cases: every language model in the most sharded layout, and a small model in
# every layout.
@pytest.mark.parametrize(
  'model, layout',
  [(model, 'parallel/fsdp_expert.gin') for model in files('models')]
  + [('models/tiny.gin', layout) for layout in files('parallel')],
)
def test_a_layout_divides_a_model(model, layout):
  names = [model, layout, 'tasks/builtin.gin', 'runs/train.gin']
  run = configuration.load(names, STEPS)
  params, logical, table, mesh = shapes_of(run, jax.devices())
  placed = shardings.param_shardings(params, logical, table, mesh)
  is_spread = lambda axis: any(
    axis in jax.tree.leaves(tuple(s.spec)) for s in jax.tree.leaves(placed)
  )
  assert mesh.size == 8
  is_dense = stack(run).moe_every == 0
  for axis in ('fsdp', 'model', *([] if is_dense else ['expert'])):
    assert is_spread(axis) == (mesh.shape[axis] > 1), axis


def counts(name, *overrides):
  """(total, active) parameters of a model."""
  run = configuration.load([name, *REST], [*STEPS, *overrides])
  params, logical, _, _ = shapes_of(run, jax.devices()[:1])
  return cost.parameter_counts(
    params, logical, moe(run).anatomy().router.num_active
  )


@pytest.mark.parametrize('name', LADDER)
def test_the_dense_twin_has_the_active_parameters_of_the_sparse_model(name):
  total, active = counts(name)
  twin_total, twin_active = counts(name, 'DENSE_TWIN=True')
  assert twin_total == twin_active
  assert math.isclose(twin_active, active, rel_tol=0.01)
  assert total > 1.3 * active


@pytest.mark.parametrize(
  'name', [n for n in files('models') if n not in LADDER]
)
def test_a_model_of_the_literature_has_its_parameters(name):
  row = describe(pathlib.Path(name).stem)
  total, published = row['params_total'], row['params_total_published']
  # A paper rounds its counts to about 1%; our own model must be closer.
  within = 0.5 if 'wudao' in name else 1.0
  is_close = abs(row['params_total_difference']) <= within
  assert is_close or row['difference_because'], (total, published)
  if row['params_active_published']:
    assert abs(row['params_active_difference']) < 1.6
  assert row['param_bytes'] == 4 * total


@pytest.mark.parametrize(
  'name, sparse_layers, num_experts, released',
  [
    ('deepseek_v3_671b', 58, 256, 671_026_419_200),
    ('kimi_k2_1t', 60, 384, 1_026_408_232_448),
  ],
)
def test_released_weights_are_counted_to_the_last_one(
  name, sparse_layers, num_experts, released
):
  # The released weights include a bias per routed expert. Here the bias is
  # state, not a parameter, so it is added to our total.
  total = describe(name)['params_total']
  assert total + sparse_layers * num_experts == released


def test_wudao_suits_the_devices_it_is_meant_for():
  run = configuration.load(['models/wudao2_1t75.gin', *REST], STEPS)
  layer = moe(run)
  assert layer.num_experts % 512 == 0
  assert layer.expert_d_ff % 256 == 0
  # We chose the vocabulary and the dense width so that 512 divides them, too.
  assert run.model.vocab_size % 512 == 0
  assert block(run).feed_forward(parent=None).width % 512 == 0
  assert 151_500 <= run.model.vocab_size <= 152_500
