"""Rigid motions, rotations, and frames of rigid groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe.modalities import rigid
from moe.modalities.rigid import Rigid
from tests import protein_data

# A quaternion and its rotation from the tests of AlphaFold.
QUATERNION = np.array([-2.0, 5.0, -1.0, 4.0], 'f4')
ROTATION = [
  [0.26087, 0.130435, 0.956522],
  [-0.565217, -0.782609, 0.26087],
  [0.782609, -0.608696, -0.130435],
]


def motion(seed, *shape):
  random = np.random.RandomState(seed)
  rotation = rigid.from_quaternion(jnp.asarray(random.randn(*shape, 4), 'f4'))
  return Rigid(rotation, jnp.asarray(random.randn(*shape, 3), 'f4'))


def matrices(motions):
  whole = np.zeros((*motions.translation.shape[:-1], 4, 4))
  whole[..., :3, :3] = motions.rotation
  whole[..., :3, 3] = motions.translation
  whole[..., 3, 3] = 1
  return whole


def of_matrices(whole):
  return Rigid(jnp.asarray(whole[..., :3, :3]), jnp.asarray(whole[..., :3, 3]))


def test_a_quaternion_gives_the_rotation_that_alphafold_states():
  rotation = rigid.from_quaternion(QUATERNION)
  np.testing.assert_allclose(rotation, ROTATION, atol=1e-6)


def test_a_quaternion_and_its_negative_are_one_rotation():
  np.testing.assert_array_equal(
    rigid.from_quaternion(QUATERNION), rigid.from_quaternion(-QUATERNION)
  )


def test_the_product_of_quaternions_is_the_product_of_rotations():
  p, q = np.random.RandomState(0).randn(2, 4).astype('f4')
  product = rigid.from_quaternion(rigid.multiply_quaternions(p, q))
  expected = rigid.from_quaternion(p) @ rigid.from_quaternion(q)
  np.testing.assert_allclose(product, expected, atol=1e-6)


def test_composing_is_the_product_of_matrices_and_the_inverse_undoes_it():
  one, two = motion(0, 5), motion(1, 5)
  np.testing.assert_allclose(
    matrices(one.compose(two)), matrices(one) @ matrices(two), atol=1e-6
  )
  nothing = matrices(one.compose(one.inverse()))
  np.testing.assert_allclose(nothing, np.tile(np.eye(4), (5, 1, 1)), atol=1e-6)
  points = jnp.ones((5, 3))
  back = one.apply_inverse(one.apply(points))
  np.testing.assert_allclose(back, points, atol=1e-6)


def test_an_update_of_zeros_moves_nothing_and_of_one_b_turns_by_a_right_angle():
  still = rigid.from_update(jnp.zeros(6))
  np.testing.assert_array_equal(matrices(still), np.eye(4))
  # The quaternion (1, 1, 0, 0) turns by 2 atan(1 / 1) = 90 degrees about x, so
  # y becomes z.
  turned = rigid.from_update(jnp.array([1.0, 0, 0, 5, 6, 7]))
  y = turned.apply(jnp.array([0.0, 1, 0]))
  np.testing.assert_allclose(y, [5, 6, 8], atol=1e-6)


def test_the_backbone_lies_in_the_plane_of_its_frame():
  n, ca, c = jnp.asarray(np.random.RandomState(2).randn(3, 3), 'f4')
  frame = rigid.from_backbone(n, ca, c)
  local = frame.apply_inverse(jnp.stack([n, ca, c]))
  np.testing.assert_allclose(local[1], 0, atol=1e-6)
  np.testing.assert_allclose(local[2, 1:], 0, atol=1e-6)
  assert abs(local[0, 2]) < 1e-6 < local[0, 1] and local[2, 0] > 0


def test_points_on_one_line_give_a_finite_gradient():
  def last(x):
    return rigid.from_backbone(x, jnp.zeros(3), 2 * x).rotation.sum()

  assert np.isfinite(jax.grad(last)(jnp.ones(3))).all()


def test_atoms_follow_the_frames_of_their_groups():
  # Group 4 turns by a quarter about x, which takes y to z. Groups 4 and 5 are
  # moved by 1 along x, group 5 relative to group 4.
  default = rigid.identity((8,), jnp.float32)
  default = default._replace(
    translation=default.translation.at[4:6, 0].set(1.0)
  )
  torsion = (
    jnp.tile(jnp.array([1.0, 0.0]), (7, 1)).at[3].set(jnp.array([0.0, 2.0]))
  )
  frames = rigid.group_frames(rigid.identity((), jnp.float32), torsion, default)
  local = jnp.array([[0.0, 1, 0], [0.0, 1, 0], [0.0, 1, 0]])
  atoms = rigid.place_atoms(frames, jnp.array([0, 4, 5]), local)
  np.testing.assert_allclose(
    atoms, [[0, 1, 0], [1, 0, 1], [2, 0, 1]], atol=1e-6
  )


@protein_data.has_data
def test_quaternions_and_frames_are_those_of_the_known_outputs():
  known = protein_data.case('geometry')
  given, out = known['in'], known['out']
  for dtype, error in (('float64', 1e-6), ('float32', 1e-4)):
    close = functools.partial(
      np.testing.assert_allclose, rtol=error, atol=error
    )
    with jax.enable_x64(True):
      of = lambda x, dtype=dtype: jnp.asarray(x, dtype)
      half = given['quat_axis_phi'] / 2
      axis = given['quat_axis_n'] / np.linalg.norm(given['quat_axis_n'])
      turned = of([np.cos(half), *np.sin(half) * axis])
      close(turned, out['quat_from_axis'])
      product = rigid.multiply_quaternions(of(given['quat_p']), turned)
      close(product, out['quat_p_mul_axis'])
      vectors = [given['frame_ex'], given['frame_ey'], given['frame_t']]
      frame = rigid.from_vectors(*map(of, vectors))
      assert product.dtype == frame.rotation.dtype == dtype
      close(matrices(frame), out['frame'])
      close(matrices(frame.inverse()), out['frame_inverse'])


@protein_data.has_data
def test_torsions_give_the_known_frames_of_all_groups():
  known = protein_data.case('geometry')
  default = known['out']['rigid_group_transforms'][known['in']['residues']]
  for dtype, error in (('float64', 1e-6), ('float32', 1e-4)):
    with jax.enable_x64(True):
      frames = rigid.group_frames(
        of_matrices(known['in']['T'].astype(dtype)),
        jnp.asarray(known['in']['alpha'], dtype),
        of_matrices(default.astype(dtype)),
      )
    assert frames.rotation.dtype == dtype
    # The last row of the known 4 x 4 matrices is not (0, 0, 0, 1), so it is
    # left out.
    expected = known['out']['global_transforms'][..., :3, :]
    np.testing.assert_allclose(
      matrices(frames)[..., :3, :], expected, rtol=error, atol=error
    )
