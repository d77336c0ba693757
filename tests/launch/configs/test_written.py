"""What a run has written into its config.gin."""

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


# 'config' of 'launch' held `Data` before 'run' did.
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
