"""Saves to gs:// on a server on this machine, and prints one line of JSON.

test_object_store.py runs it as python -m tests.checkpoint.gcs_run.
"""

import json
import os
import socket

from etils import epath
from gcp_storage_emulator.server import create_server


def start_server():
  """Starts the server and points both clients to it."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  create_server('127.0.0.1', port, True, 'runs').start()
  url = f'http://127.0.0.1:{port}'
  os.environ['TENSORSTORE_GCS_HTTP_URL'] = url  # Arrays.
  os.environ['STORAGE_EMULATOR_HOST'] = url  # All other files.
  os.environ['GOOGLE_AUTH_TOKEN_FOR_TESTING'] = 'none'


def main():
  """Saves steps of a run, fails to save one, resumes, and damages a step."""
  from moe import failpoints
  from moe.checkpoint import listing, restore, save
  from tests.checkpoint.states import META, abstract, make_state

  directory = epath.Path('gs://runs/run/checkpoints')
  found = {}
  saver = save.Checkpointer(directory, keep_last=2, keep_best=0)
  for step in (1, 2, 3):
    saver.save(step, make_state(step), META)
  saver.wait()
  found['kept'] = listing.steps(directory)
  os.environ[failpoints.VARIABLE] = 'commit.sealed=EROFS'
  failpoints._reached.clear()
  try:
    saver.save(4, make_state(4), META)
    saver.wait()
  except save.SaveError as error:
    found['error'] = str(error)
  del os.environ[failpoints.VARIABLE]
  found['after_failure'] = listing.steps(directory)
  found['left'] = sorted(path.name for path in directory.iterdir())
  resumed = save.Checkpointer(directory, keep_last=2, keep_best=0)
  state, _ = resumed.restore(None, abstract(make_state()))
  found['resumed'] = int(state.step)
  found['head'] = state.params['head'].tolist()
  found['sound'] = restore.damage(directory / '3')
  victim = directory / '3/meta/metadata'
  victim.write_bytes(victim.read_bytes()[:-1])
  found['damage'] = restore.damage(directory / '3')
  found['fallback'] = restore.choose(directory, None)[0]
  try:
    save.Checkpointer('gs://missing/run').save(1, make_state(1), META)
  except save.SaveError as error:
    found['missing'] = str(error)
  print(json.dumps(found), flush=True)
  os._exit(0)  # The server would wait for its clients.


if __name__ == '__main__':
  os.environ['EPATH_USE_TF'] = 'false'  # As in `launch.runtime.run`.
  start_server()
  main()
