"""Fused attention equals plain XLA; on a CPU, kernels are interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import attention, kernels
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.types import Layout
from tests.layers.test_attention import mask_of

B, T, N, K, H = 2, 256, 4, 2, 16


@pytest.fixture
def small_tiles(monkeypatch):
  """Sets tiles of 128, so that with 256 tokens some tiles are skipped."""
  monkeypatch.setattr(kernels, '_TILE', 128)


def arrays(seed=0):
  random = np.random.RandomState(seed)
  q_BTNH = random.randn(B, T, N, H).astype('f4')
  k_BTKH, v_BTKH = random.randn(2, B, T, K, H).astype('f4')
  return q_BTNH, k_BTKH, v_BTKH


def documents():
  """The mask of two rows.

  Row 0 has two documents and padding. Row 1 is one document with a block. The
  block has 39 tokens and the place before them, and spans two tiles.
  """
  segments, blocks = np.ones((B, T), 'i4'), np.zeros((B, T), 'i4')
  segments[0, 100:], segments[0, 250:] = 2, 0
  blocks[1, 120:160] = 7
  return mask_of(segments, blocks)


def splash(q, k, v, d, longest_block, layout=Layout()):  # noqa: B008
  return kernels.splash(
    q, k, v, d.query_segments_BT, d.query_blocks_BT, layout, longest_block
  )


def value_and_gradients(fn):
  weight = np.random.RandomState(1).randn(B, T, N, H).astype('f4')

  def loss(*qkv):
    out = fn(*qkv)
    return jnp.sum(out * weight), out

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def assert_close(got, wanted, tolerance=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
    got,
    wanted,
  )


def test_the_last_key_a_query_sees_is_itself_or_the_end_of_its_block():
  segments = [[1, 1, 1, 1, 1, 2, 2, 0]]
  blocks = [[0, 3, 3, 4, 4, 4, 0, 0]]  # Block 4 ends with its document.
  last = kernels.last_visible(jnp.array(segments), jnp.array(blocks))
  assert last.tolist() == [[0, 2, 2, 4, 4, 5, 6, 7]]


def test_key_no_later_than_the_last_is_the_attention_rule():
  d = documents()
  last_BT1 = kernels.last_visible(d.query_segments_BT, d.query_blocks_BT)
  seen_BTS = jnp.arange(T) <= last_BT1[..., None]
  seen_BTS &= d.query_segments_BT[:, :, None] == d.key_segments_BS[:, None]
  np.testing.assert_array_equal(seen_BTS, attention.visible(d))


@pytest.mark.slow
def test_splash_is_attention_forward_and_backward(small_tiles):
  d = documents()
  got = value_and_gradients(lambda q, k, v: splash(q, k, v, d, 39))
  wanted = value_and_gradients(lambda q, k, v: attention.attend(q, k, v, d))
  assert_close(got(*arrays()), wanted(*arrays()))


@pytest.mark.parametrize('longest_block, is_lost', [(39, False), (38, True)])
def test_a_block_longer_than_declared_makes_its_rows_nan(
  monkeypatch, longest_block, is_lost
):
  # If a block is too long, `splash` makes the queries NaN before it calls the
  # kernel. So a fake kernel that returns its queries is enough.
  monkeypatch.setattr(kernels, '_splash_local', lambda q_BTNH, *_: q_BTNH)
  q_BTNH = splash(*arrays(), documents(), longest_block)
  assert bool(np.isnan(q_BTNH).all()) == is_lost


@pytest.mark.slow
@pytest.mark.parametrize(
  'shape', [MeshShape(data=2, model=2), MeshShape(data=2, context=2)]
)
def test_splash_over_devices_is_attention(small_tiles, shape):
  d = documents()
  mesh = make_mesh(shape, jax.devices()[:4])
  layout = rules.layout(rules.table('standard'), mesh)
  got = value_and_gradients(lambda q, k, v: splash(q, k, v, d, 39, layout))
  wanted = value_and_gradients(lambda q, k, v: attention.attend(q, k, v, d))
  with jax.set_mesh(mesh):
    found = got(*arrays())
  assert_close(found, wanted(*arrays()))


def test_tiles_without_visible_keys_are_left_out():
  # There are 3 x 3 tiles of 512 queries and 512 keys. The first case is causal.
  # In the second case, a query may see one later key, so blocks may cross the
  # border of two tiles.
  tables = lambda first, queries, span, by_keys=False: tuple(
    a[0].tolist()
    for a in kernels._tables(jnp.int32(first), queries, 1536, span, by_keys)
  )
  ahead, runs = tables(0, 1536, 0)
  assert runs == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
  # After the last tile of a row the kernel must not fetch another tile.
  assert ahead == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
  assert tables(0, 1536, 1)[1] == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
  # This device has the last third of the queries.
  assert tables(1024, 512, 0)[1] == [[1, 1, 1]]
  # With by_keys the kernel loops over the queries for each column of keys.
  ahead, runs = tables(0, 1536, 0, by_keys=True)
  assert runs == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
  assert ahead == [[0, 1, 2], [1, 1, 2], [2, 2, 2]]


def test_the_kernel_is_that_of_the_meshs_devices(monkeypatch):
  called = []
  monkeypatch.setattr(
    kernels, 'splash', lambda q, *_: called.append('splash') or q
  )
  monkeypatch.setattr(
    kernels, 'cudnn', lambda q, *_: called.append('cudnn') or q
  )
  monkeypatch.setattr(
    attention, 'attend', lambda q, *_: called.append('xla') or q
  )
  monkeypatch.setattr(attention, 'num_parts', lambda *_: 1)
  qkv = [jnp.zeros(a.shape, jnp.bfloat16) for a in arrays()]
  for platform in ('tpu', 'gpu', 'cpu', None):
    monkeypatch.setattr(kernels, 'platform', lambda p=platform: p)
    attention.self_attend(*qkv, documents(), Layout())
    attention.self_attend(*qkv, documents(), Layout(), 'xla')
  assert called == ['splash', 'xla', 'cudnn', 'xla'] + ['xla'] * 4


def test_the_platform_is_that_of_the_mesh_and_none_without_one():
  assert kernels.platform() is None
  with jax.set_mesh(make_mesh(MeshShape(data=2), jax.devices()[:2])):
    assert kernels.platform() == 'cpu'


@pytest.mark.parametrize(
  'kernel, changed, reason',
  [
    ('tpu', {'T': 200}, '200 tokens of a device must be a multiple of 128'),
    ('tpu', {'B': 3}, '3 sequences must be divisible by 2 devices'),
    ('tpu', {'K': 1}, '4 query heads and 1 key heads by 2 devices'),
    ('gpu', {'dtype': jnp.float32}, 'cuDNN needs bfloat16'),
    ('gpu', {'H': 192}, 'at most 128 features'),
    ('tpu', {'H': 192, 'dtype': jnp.float32}, None),
    ('gpu', {'T': 200}, None),
  ],
)
def test_shapes_that_a_kernel_cannot_take_are_named(kernel, changed, reason):
  size = {'B': B, 'T': T, 'K': K, 'H': 64, 'dtype': jnp.bfloat16} | changed
  made = lambda heads: jax.ShapeDtypeStruct(
    (size['B'], size['T'], heads, size['H']), size['dtype']
  )
  layout = Layout(
    batch_axes=('data',),
    tensor_axes=('model',),
    sizes=(('data', 2), ('model', 2)),
  )
  got = kernels.refusal(kernel, made(N), made(size['K']), layout)
  if reason is None:
    assert got is None
  else:
    with pytest.raises(ValueError, match=reason):
      raise ValueError(got)


def test_fused_attention_where_there_is_none_is_refused():
  with pytest.raises(ValueError, match="='fused' needs a kernel.*platform cpu"):
    with jax.set_mesh(make_mesh(MeshShape(data=2), jax.devices()[:2])):
      attention.self_attend(*arrays(), documents(), Layout(), 'fused')
  with pytest.raises(ValueError, match="ATTENTION_KERNEL='flash' must be"):
    attention.self_attend(*arrays(), documents(), Layout(), 'flash')


def test_cudnn_gets_the_attention_mask(monkeypatch):
  # There is no GPU, so the call is made with XLA's implementation.
  real = jax.nn.dot_product_attention

  def stand_in(*args, implementation, **options):
    assert implementation == 'cudnn'
    return real(*args, implementation='xla', **options)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', stand_in)
  d = documents()
  mesh = make_mesh(MeshShape(data=2, model=2), jax.devices()[:4])
  layout = rules.layout(rules.table('standard'), mesh)
  seen = attention.visible(d)
  with jax.set_mesh(mesh):
    got = jax.jit(lambda *qkv: kernels.cudnn(*qkv, seen, layout))(*arrays())
  wanted = jax.jit(lambda *qkv: attention.attend(*qkv, d))(*arrays())
  assert_close(got, wanted)
