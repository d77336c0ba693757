"""Tables of the mesh axes that divide each logical axis, by name."""

from jax.sharding import Mesh

from moe import axes
from moe.parallel.mesh import CONTEXT, DATA, EXPERT, FSDP, MODEL
from moe.types import Layout

MeshAxes = tuple[str, ...]
Table = dict[str, MeshAxes]

TABLES: dict[str, Table] = {
  # 'expert' divides the experts, 'model' divides widths, heads and vocabulary,
  # and 'fsdp' divides another dim of most parameters. 'data', 'fsdp' and
  # 'expert' divide the batch.
  'standard': {
    axes.BATCH: (DATA, FSDP, EXPERT),
    axes.LENGTH: (CONTEXT,),
    axes.EMBED: (FSDP,),
    axes.MLP: (MODEL,),
    axes.HEADS: (MODEL,),
    axes.KV: (),
    axes.LATENT: (FSDP,),
    axes.VOCAB: (MODEL,),
    axes.LAYERS: (),
    axes.EXPERT: (EXPERT,),
    axes.EXPERT_MLP: (MODEL,),
  },
  # Like 'standard', but 'expert' also divides the dim 'embed'. We use it if
  # attention and embeddings do not fit in memory beside the experts. In arrays
  # of experts, 'expert' divides the expert dim, so only 'fsdp' divides 'embed'.
  'fsdp_over_expert': {
    axes.BATCH: (DATA, FSDP, EXPERT),
    axes.LENGTH: (CONTEXT,),
    axes.EMBED: (FSDP, EXPERT),
    axes.MLP: (MODEL,),
    axes.HEADS: (MODEL,),
    axes.KV: (),
    axes.LATENT: (FSDP,),
    axes.VOCAB: (MODEL,),
    axes.LAYERS: (),
    axes.EXPERT: (EXPERT,),
    axes.EXPERT_MLP: (MODEL,),
  },
}


def table(name: str) -> Table:
  """Finds a table by its name.

  Raises:
    ValueError: if no table has that name.
  """
  if name not in TABLES:
    raise ValueError(
      f"RULES='{name}' must be one of {sorted(TABLES)}: for a new"
      ' layout, add a table to moe/parallel/rules.py.'
    )
  return TABLES[name]


def activation_rules(
  rules: Table,
) -> tuple[tuple[str, MeshAxes | None], ...]:
  """Returns a table in the form that flax reads for activations.

  The axes 'embed' and 'latent' are left out, since these dims are divided in
  parameters but not in activations.
  """
  return tuple(
    (name, mesh_axes or None)
    for name, mesh_axes in rules.items()
    if name not in (axes.EMBED, axes.LATENT)
  )


def token_axes(rules: Table) -> MeshAxes:
  """Mesh axes along which devices hold different rows or columns of tokens."""
  return (*rules[axes.BATCH], *rules[axes.LENGTH])


def layout(rules: Table, mesh: Mesh) -> Layout:
  """Returns the mesh axes by use; axes of size 1 are only in `sizes`."""
  used = lambda mesh_axes: tuple(a for a in mesh_axes if mesh.shape[a] > 1)
  if mesh.size == 1:
    return Layout()
  return Layout(
    batch_axes=used(rules[axes.BATCH]),
    sequence_axes=used(rules[axes.LENGTH]),
    expert_axes=used(rules[axes.EXPERT]),
    tensor_axes=used(rules[axes.EXPERT_MLP]),
    sizes=tuple(mesh.shape.items()),
  )
