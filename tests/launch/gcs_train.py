"""Trains with a work directory in a bucket, which this machine serves.

python -m tests.launch.gcs_train DIR prints one line of JSON for test_gcs.py.
"""

import json
import os
import pathlib
import shutil
import sys

from tests.checkpoint import gcs_run
from tests.launch import tiny_run

FLAGS = [
  *tiny_run.FLAGS,
  '--gin.SAVE_PERIOD=4',
  '--gin.EVAL_PERIOD=4',
  '--gin.KEEP_LAST=2',
  '--gin.KEEP_BEST=0',
  '--gin.TRAIN_STEPS=12',
  '--gin.WARMUP_STEPS=2',
]
URL = 'gs://runs/诗 词'


def main(folder):
  """Trains in a directory, and in a bucket with an interruption."""
  folder = pathlib.Path(folder)
  os.environ['WUDAO_CACHE'] = str(folder / 'cache')
  os.environ['JAX_NUM_CPU_DEVICES'] = '1'
  from etils import epath

  from launch import checkpoint, train
  from moe import failpoints

  found = {'whole': train.main([*FLAGS, f'--workdir={folder}/whole'])}
  # The signal comes in step 6. So the steps 4 and 6 are saved.
  os.environ[failpoints.VARIABLE] = 'run.step=term@6'
  found['stopped'] = train.main([*FLAGS, f'--workdir={URL}'])
  del os.environ[failpoints.VARIABLE]
  # The next attempt finds no mirror, as on another machine.
  shutil.rmtree(folder / 'cache/runs')
  found['resumed'] = train.main([*FLAGS, f'--workdir={URL}'])
  found['steps'] = sorted(
    path.name for path in epath.Path(f'{URL}/checkpoints').iterdir()
  )
  found['verified'] = checkpoint.main(['verify', URL])
  logs = {}
  for name, place in (('whole', folder / 'whole'), ('bucket', URL)):
    text = (epath.Path(place) / 'log.jsonl').read_text()
    logs[name] = [json.loads(line) for line in text.splitlines()]
    for record in logs[name]:
      del record['time']
  found['is_equal'] = logs['whole'] == logs['bucket']
  found['num_steps'] = len(logs['bucket'])
  found['missing'] = train.main([*FLAGS, '--workdir=gs://missing/run'])
  print(json.dumps(found), flush=True)
  os._exit(0)  # The server would wait for its clients.


if __name__ == '__main__':
  gcs_run.start_server()
  main(sys.argv[1])
