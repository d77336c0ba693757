"""Values can be read from the config.gin that a run has written."""

import pytest

from launch.configs import written

CONFIG = """
from __gin__ import dynamic_registration
from {package} import {module}
from moe.train import trainer
from nowhere import gates
SEED = 7
EVAL_TASKS = ('poems', 'ci')
trainer.Settings.seed = %SEED
{module}.Data.train = 'poems'
{module}.Data.evaluation = %EVAL_TASKS
"""


# `Data` was in launch/config.py before, and is in moe/runs/run.py now.
@pytest.mark.parametrize(
  ('package', 'module'), [('moe.runs', 'run'), ('launch', 'config')]
)
def test_seed_and_tasks_are_found_behind_macros(tmp_path, package, module):
  path = tmp_path / 'config.gin'
  path.write_text(CONFIG.format(package=package, module=module))
  assert written.seed_and_tasks(path) == (7, ('poems', 'poems', 'ci'))


def test_a_run_that_binds_neither_has_seed_0_and_no_evaluation(tmp_path):
  path = tmp_path / 'config.gin'
  path.write_text('SEED = 7\n')
  assert written.seed_and_tasks(path) == (0, ('',))


def test_task_modules_are_found_from_a_step_of_the_run(tmp_path):
  text = CONFIG.format(package='moe.runs', module='run')
  text += "run.Data.task_modules = ['a.py']\nrun.Data.cache_dir = 'c'\n"
  (tmp_path / 'config.gin').write_text(text)
  step = tmp_path / 'checkpoints' / '7'
  step.mkdir(parents=True)
  assert written.task_modules_and_cache(str(step)) == (('a.py',), 'c')
  assert written.task_modules_and_cache(str(tmp_path / 'a/b/c')) == ((), '')
