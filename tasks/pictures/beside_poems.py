"""Declares a mixture of encoded pictures and of poems.

A run names this module in TASK_MODULES, behind the file that declares the tasks
of its pictures.
"""

from tasks import registry

MIXTURE = 'pictures_poems'
# Share of the rows of a batch that are poems.
_POEMS = 0.25

_pictures = [
  name for name in registry.TASKS if name.startswith(('draw_', 'describe_'))
]
if not _pictures:
  raise ValueError(
    'TASK_MODULES must name the picture_tasks.py of encoded pictures before'
    ' tasks.pictures.beside_poems, got no task of pictures: write one with'
    ' `python -m launch.images encode`.'
  )
_rate = (1 - _POEMS) / len(_pictures)
registry.add_mixture(
  MIXTURE, [*_pictures, 'poems_shi'], [_rate] * len(_pictures) + [_POEMS]
)
