"""Configures a run for a model that is imported from Hugging Face's format."""

from collections.abc import Sequence

from launch.configs import configuration
from launch.configs.configuration import Configuration
from moe.models.hugging_face_import import Imported


def configured(imported: Imported, overrides: Sequence[str]) -> Configuration:
  """The configuration of a run with an imported model.

  Args:
    imported: bindings and sequence length that were read from config.json.
    overrides: bindings of the command line, such as the sizes of the mesh.

  Raises:
    ValueError: as `configuration.read` does.
  """
  model = 'latent_decoder' if imported.is_latent else 'decoder'
  files = [f'models/{model}.gin', 'parallel/data.gin', 'tasks/builtin.gin']
  bindings = [f'{name}={_written(v)}' for name, v in imported.bindings.items()]
  return configuration.read(
    [*files, 'runs/train.gin'],
    [
      *bindings,
      f'SEQUENCE_LENGTH={imported.length}',
      'TRAIN_STEPS=1000',
      'LEARNING_RATE=1e-5',
      *overrides,
    ],
  )


def _written(value: object) -> str:
  """A value in gin's syntax; a string that begins with @ is a reference."""
  is_reference = isinstance(value, str) and value.startswith('@')
  return value if is_reference else repr(value)
