"""Tests the whole path: chains train a model, which folds and is scored."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from launch import fold, proteins, train
from launch.configs import configuration
from moe.data.chains import empty_batch, fill_row
from moe.modalities import structure_files, structure_writing
from moe.models.folding import token_batch
from moe.runs import folded
from tests import folding_cases

RUN = ['--gin_file=runs/fold_overfit.gin']


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with three chains in `mine`, and a run of two steps in `run`.

  The last chain is too long for the run.
  """
  root = tmp_path_factory.mktemp('fold')
  (root / 'mine').mkdir()
  origin = structure_writing.Origin('by hand', '0' * 64)
  for number in range(3):
    chain = folding_cases.helix(30 + number, seed=number)
    text = structure_writing.pdb_text(chain, chain.numbers / 99, origin)
    (root / 'mine' / f'{number}.pdb').write_text(text)
  sizes = {
    name: value
    for name, value in folding_cases.SIZES.items()
    if name != 'CHAINS'
  }
  sizes |= {'BATCH_SIZE': 8, 'MESH_DATA': -1}
  flags = [f'--gin.{name}={value}' for name, value in sizes.items()]
  flags.append(f"--gin.CHAINS=('{root}/mine',)")
  flags += ['--gin.FOLDING_DROPOUT=0.2', '--gin.LONGEST_CHAIN=31']
  code = train.main([*RUN, *flags, f'--workdir={root}/run'])
  assert code == 0
  return root


@pytest.mark.slow
def test_the_page_of_a_run_has_a_figure_for_each_term_of_the_loss(place):
  page = (place / 'run/report.html').read_text(encoding='utf-8')
  for title in ('FAPE of backbone frames', 'Distogram', 'Torsion angles'):
    assert title in page
  assert 'FAPE of all atoms' not in page  # The run has no such term.
  assert 'bits per character' not in page


@pytest.mark.slow
def test_a_resumed_run_names_its_changed_settings(place, capsys):
  again = f'--gin_file={place}/run/config.gin', f'--workdir={place}/run'
  assert train.main([*again, '--gin.HIDDEN_RESIDUES=0.5', '--dry_run']) == 0
  told = 'resumes with settings that differ from its config.gin: '
  change = 'HIDDEN_RESIDUES 0.0 -> 0.5'
  assert told + change in capsys.readouterr().err
  assert train.main([*again, '--gin.SEED=1', '--dry_run']) == 2


@pytest.mark.slow
def test_a_trained_model_folds_sequences(place, capsys):
  (place / 'a.fasta').write_bytes(b'>one\r\nACDEFGHIKL\r\n>two\r\nmkxwy--*\r\n')
  code = fold.main([
    f'--checkpoint={place}/run',
    f'--fasta={place}/a.fasta',
    f'--out={place}/out',
    '--recycles=1',
    '--relax_steps=3',
  ])  # fmt: skip
  assert (
    code == 0 and 'one.cif and .pdb: 10 residues' in capsys.readouterr().out
  )
  page = (place / 'out/index.html').read_text(encoding='utf-8')
  assert 'side chains if <code>ALL_ATOM_FAPE</code> trained' in page
  for name, sequence in (('one', 'ACDEFGHIKL'), ('two', 'MKXWY')):
    (chain,) = structure_files.read(place / 'out' / f'{name}.cif')
    assert chain.sequence == sequence
    text = (place / 'out' / f'{name}.pdb').read_text(encoding='utf-8')
    assert 'RELAXED IN 3 STEPS' in text
    # The run trained no side chains.
    assert chain.mask[:, :4].all() and not chain.has_side_chains
  page = (place / 'out' / 'index.html').read_text()
  assert 'hold the backbone only' in page and 'relaxed in 3 steps' in page
  assert 'not measured' in page and 'src="http' not in page


@pytest.mark.slow
def test_a_long_chain_is_folded(place):
  # Its row has 512 places, and attention computes such a row in parts.
  sequence = 'ACDEFGHIKL' * 26
  code = fold.main([
    f'--checkpoint={place}/run',
    f'--sequence={sequence}',
    f'--out={place}/long',
    '--recycles=0',
    '--relax_steps=2',
  ])  # fmt: skip
  assert code == 0
  (chain,) = structure_files.read(place / 'long' / 'sequence.cif')
  assert chain.sequence == sequence and chain.mask[:, :4].all()
  assert np.isfinite(chain.atoms).all() and np.abs(chain.atoms).max() > 1


@pytest.mark.slow
def test_the_states_of_the_last_layer_are_those_of_the_trunk(place):
  directory = f'{place}/run'
  run = configuration.load_other_run(directory, configuration.FOLDING_MODEL)
  model = folded.load(run, directory)
  chain = folded.unfolded('a', 'ACDEFGHIKL')
  (states,) = model.states([chain])
  assert states.shape == (10, 2, 16)
  assert np.abs(states[:, 0] - states[:, 1]).max() > 1e-3
  batch = empty_batch(1, 10)
  fill_row(batch, 0, chain, model.ids)
  trunk = model.functional.module.trunk
  plain = trunk.clone(stack=functools.partial(trunk.stack, mixes_states=False))
  variables = {'params': model.params['trunk']}
  outputs = plain.apply(variables, token_batch(batch), None, False)
  np.testing.assert_allclose(states[:, 1], outputs.hidden[0], atol=1e-5)


@pytest.mark.slow
def test_secondary_structure_is_read_from_the_trunk(place, capsys):
  code = proteins.main([
    'secondary',
    f'--checkpoint={place}/run',
    '--split=train',
  ])  # fmt: skip
  assert code == 0
  lines = capsys.readouterr().out.splitlines()
  (majority,) = [line for line in lines if line.startswith('Q3, majority')]
  assert sum('window of 17' in line for line in lines) == 2
  assert any('layers of the folding trunk, mixed' in line for line in lines)
  assert any(line.startswith('Q3, states less names') for line in lines)
  # All chains are helices, except for their ends.
  assert float(majority.split()[2]) > 0.5


@pytest.mark.nightly
def test_samples_differ_and_a_seed_gives_them_again(place):
  def atoms(name, seed):
    code = fold.main([
      f'--checkpoint={place}/run',
      '--sequence=ACDEFGHIKL',
      f'--out={place}/{name}',
      '--samples=2',
      f'--seed={seed}',
    ])  # fmt: skip
    assert code == 0
    folder = place / name
    return [(folder / f'sequence_sample_{n}.cif').read_text() for n in (1, 2)]

  first = atoms('s0', 0)
  assert first[0] != first[1] and first == atoms('s1', 0)


@pytest.mark.slow
def test_a_trained_model_is_scored_beside_baselines(place, capsys):
  code = proteins.main([
    'score',
    f'--checkpoint={place}/run',
    f'--structures={place}/mine',
    f'--output={place}/scores',
  ])  # fmt: skip
  assert code == 0
  out = capsys.readouterr().out
  assert 'helix' in out and 'nearest chain' in out
  found = json.loads((place / 'scores/protein_scores.json').read_text())
  first, _, last = found['chains']
  # The chains are helices, and the model was trained on them.
  assert first['scores']['helix']['lDDT'] > 0.9
  assert first['scores']['nearest chain']['lDDT'] > 0.9
  assert 0 <= first['scores']['model']['lDDT'] <= 1
  # The nearest chain is sought among all chains, not only those of the run.
  assert last['nearest'] == last['name'] and last['identity'] == 1
  assert 'separation' in (place / 'scores/protein_scores.html').read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--sequence=AC1'], "got '1', first at residue 3"),
    (['--sequence='], 'at least one residue'),
    ([f'--sequence={"A" * 2000}', '--memory=2'], 'raise --memory'),
    ([f'--sequence={"A" * 3000}', '--memory=9999'], '2,048 residues'),
    (['--fasta=nowhere'], 'must be a file'),
    (['--sequence=ACD', '--recycles=-1'], '--recycles=-1 must be at least 0'),
    (
      ['--sequence=ACD', '--relax_steps=-1'],
      '--relax_steps=-1 must be at least 0',
    ),
    (['--sequence=ACD', '--samples=0'], '--samples=0 must be at least 1'),
  ],
)
def test_what_cannot_be_folded_is_refused_in_a_sentence(
  place, capsys, flags, message
):
  code = fold.main([f'--checkpoint={place}/run', f'--out={place}/x', *flags])
  assert code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_side_chains_cannot_be_learned_from_backbones(place, capsys):
  code = train.main([
    *RUN,
    f"--gin.CHAINS=('{place}/mine',)",
    '--gin.ALL_ATOM_FAPE=0.5',
    '--gin.BATCH_SIZE=8',
    f'--workdir={place}/all_atoms',
  ])  # fmt: skip
  assert code == 2
  assert 'needs chains with side chains' in capsys.readouterr().err


@pytest.mark.slow
def test_the_run_says_how_often_a_chain_is_recycled(place, monkeypatch):
  run = configuration.load_other_run(
    f'{place}/run', configuration.FOLDING_MODEL
  )
  counts = []
  monkeypatch.setattr(
    folded.FoldingModel, '_fold', lambda *given: counts.append(given[3]) or ()
  )
  for recycles in (0, 2):
    objective = functools.partial(run.objective, recycles=recycles)
    changed = dataclasses.replace(run, objective=objective)
    model = folded.load(changed, f'{place}/run')
    list(model.fold({'a': 'ACD'}, None, 1.0))
    list(model.fold({'a': 'ACD'}, 3, 1.0))
  assert counts == [0, 3, 2, 3]
  with pytest.raises(ValueError, match='--recycles=-1'):
    list(model.fold({'a': 'ACD'}, -1, 1.0))


@pytest.mark.slow
def test_a_run_of_another_kind_is_refused(run_directory, tmp_path, capsys):
  code = fold.main([
    f'--checkpoint={run_directory}',
    '--sequence=ACD',
    f'--out={tmp_path}',
  ])  # fmt: skip
  assert code == 2
  assert 'the run of a folding model' in capsys.readouterr().err
