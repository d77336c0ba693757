"""A checkpoint from an unknown source is checked before it is read."""

import json
import os

import pytest

from moe.checkpoint import foreign


def test_a_step_of_ours_is_harmless(saved):
  assert foreign.problems(saved / '2') == []


def link(step):
  (step / 'state/d').rename(step / 'moved')
  (step / 'state/d').symlink_to(step / 'moved')


def hard_link(step):
  os.link(step / 'meta/metadata', step / 'state/twin')


def pipe(step):
  os.mkfifo(step / 'state/pipe')


def pickled(step):
  (step / 'state/weights.pkl').write_bytes(b'cos\nsystem\n')


def deep(step):
  (step / 'meta/metadata').write_text('[' * 100_000)


def no_json(step):
  (step / 'state/_METADATA').write_text('{')


def no_late_metrics(step):
  (step / 'late_metrics.json').write_text('[' * 100_000)


def sparse(step):
  with open(step / 'state/d/large', 'wb') as f:
    f.truncate(2**40)


def partly_sparse(step):
  with open(step / 'state/d/large', 'wb') as f:
    f.write(b'x' * 2**16)
    f.truncate(2**30)


def other_driver(step):
  (step / 'state/zarr.json').write_text('{"driver": "http"}')


def other_store(step):
  path = step / 'state/_METADATA'
  metadata = json.loads(path.read_text())
  first = next(iter(metadata['tree_metadata'].values()))
  first['value_metadata']['spec'] = [{'kvstore': 'gs://bucket/weights/'}]
  path.write_text(json.dumps(metadata))


def no_index(step):
  (step / 'state/manifest.ocdbt').write_bytes(b'\0' * 100)


@pytest.mark.parametrize(
  ('harm', 'fragment'),
  [
    (link, 'state/d is a link'),
    (hard_link, 'a hard link'),
    (pipe, 'state/pipe is a link or a device'),
    (pickled, 'can contain code'),
    (deep, 'nested too deep'),
    (no_json, 'is not JSON'),
    (no_late_metrics, 'late_metrics.json is nested too deep'),
    (sparse, 'd/large has 1,099,511,627,776 bytes, but only 0 of them'),
    (partly_sparse, 'd/large has 1,073,741,824 bytes, but only 65,536'),
    (other_driver, 'zarr.json names another store'),
    (other_store, '_METADATA names another store'),
    (no_index, 'it cannot be read'),
  ],
)
def test_what_could_do_harm_is_named(copy, harm, fragment):
  harm(copy / '2')
  found = foreign.problems(copy / '2')
  assert any(fragment in problem for problem in found), found


@pytest.mark.parametrize('place', ['', 'checkpoints', 'checkpoints/2'])
def test_a_checkpoint_with_a_harmful_step_is_refused(copy, place):
  run = copy.parent / 'run'
  run.mkdir()
  copy.rename(run / 'checkpoints')
  foreign.check(run / place)
  pickled(run / 'checkpoints/2')
  with pytest.raises(ValueError, match='Step 2 in .*can contain code'):
    foreign.check(run / place)


def test_a_path_that_leads_out_of_the_directory_is_named(copy):
  index = copy / '2/state/manifest.ocdbt'
  # The nodes of an index are compressed, so they are hard to edit. Instead, the
  # test replaces the function that returns their content.
  outside = [
    {'location': 'value:../../../etc/:passwd:0:10'},
    {'indirect_value': 'value::/etc/passwd:0:10'},
    {'entries': [{'indirect_value': 'value:ocdbt.process_0/:d/a:0:1'}]},
  ]
  with pytest.MonkeyPatch.context() as patch:
    dumped = iter(outside)
    patch.setattr(
      'tensorstore.ocdbt.dump',
      lambda *_: type('Done', (), {'result': lambda _: next(dumped)})(),
    )
    found = [list(foreign._path_problems(index)) for _ in outside]
  assert [len(problems) for problems in found] == [1, 1, 0]
  assert 'which is outside' in found[0][0]


def test_declared_sizes_are_compared_with_the_bytes_on_the_disk(
  copy, monkeypatch
):
  monkeypatch.setattr(foreign, '_MAX_EXPANSION', 0)
  assert 'its arrays declare' in foreign.problems(copy / '2')[0]


@pytest.mark.parametrize(
  ('shape', 'dtype', 'size'),
  [([4, 2], '<f4', 32), ([], '<i8', 8), ([3], 'bfloat16', 6)],
)
def test_the_size_of_an_array_is_its_places_times_their_bytes(
  shape, dtype, size
):
  content = json.dumps({'shape': shape, 'dtype': dtype}).encode()
  assert foreign.declared_bytes(content) == size


@pytest.mark.parametrize(
  'entry',
  [
    [],
    {'shape': [-1], 'dtype': '<f4'},
    {'shape': [1.5], 'dtype': '<f4'},
    {'shape': [1], 'dtype': 'object'},
    {'shape': [1], 'dtype': 'kernel32'},
    {'shape': [1] * 99, 'dtype': '<f4'},
    {'shape': [1], 'dtype': '<f4', 'codecs': [{'kvstore': 'gs://a/b/'}]},
  ],
)
def test_metadata_of_no_array_of_numbers_are_refused(entry):
  with pytest.raises(ValueError, match='array'):
    foreign.declared_bytes(json.dumps(entry).encode())
