"""Forty mistakes in a configuration are refused with their place and advice."""

import random
import time

import pytest

from launch.configs import bindings, configuration

FILE = 'runs/quickstart.gin'
WRONG = ["'many'", '1.5', '-3', 'None', '(1, 2)', '@gates.TopK', '%NOWHERE']


def swapped(name, rng):
  """The name with two neighbouring, different letters exchanged."""
  places = [i for i in range(len(name) - 1) if name[i] != name[i + 1]]
  i = rng.choice(places)
  return name[:i] + name[i + 1] + name[i] + name[i + 2 :]


def mistakes():
  """Forty pairs (wrong binding, part of the message that it must give)."""
  rng = random.Random(40)
  bound = bindings.read([FILE], []).bindings
  macros = sorted({b.argument for b in bound if b.target is None})
  arguments = sorted({(b.name, b.argument) for b in bound if b.name})
  sizes = ['D_MODEL', 'NUM_LAYERS', 'BATCH_SIZE', 'TRAIN_STEPS', 'TOP_K']
  found = []
  for name in rng.sample([m for m in macros if len(m) > 5], 12):
    found.append((f'{swapped(name, rng)}=1', 'did you mean'))
  for target, argument in rng.sample(
    [pair for pair in arguments if len(pair[1]) > 5], 10
  ):
    wrong = swapped(argument, rng)
    found.append((f'{target}.{wrong}=1', f"has no '{wrong}'"))
  for name in sizes:
    for value in rng.sample(WRONG, 3):
      found.append((f'{name}={value}', name))
  found += [
    ("REMAT='most'", 'must be one of'),
    ('D_MODEL', 'write --gin.NAME=VALUE'),
    ('D_MODEL=64 64', 'cannot be read as gin'),
  ]
  return found


MISTAKES = mistakes()


@pytest.mark.parametrize(('binding', 'fragment'), MISTAKES)
def test_a_mistake_is_refused_at_once(binding, fragment):
  begin = time.process_time()
  with pytest.raises(ValueError) as error:
    configuration.read([FILE], [binding])
  assert time.process_time() - begin < 3
  assert fragment in str(error.value)
  assert '--gin.' in str(error.value) or '.gin:' in str(error.value)


@pytest.mark.parametrize('binding', [binding for binding, _ in MISTAKES])
def test_a_mistake_in_a_file_is_refused_with_file_and_line(tmp_path, binding):
  path = tmp_path / 'mine.gin'
  path.write_text(f"include '{FILE}'\n\n{binding}\n")
  with pytest.raises(ValueError) as error:
    configuration.read([str(path)], [])
  assert f'{path}:3' in str(error.value)


def test_there_are_forty():
  assert len(MISTAKES) == 40
