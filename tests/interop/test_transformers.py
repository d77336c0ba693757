"""Compares our models with transformers, in both directions.

The tests need the extra `interop`.
"""

import json
import warnings

import jax
import numpy as np
import pytest

from launch import convert
from launch.configs import configuration
from moe.modalities import hugging_face_tokenizer
from moe.modalities.text import train_vocabulary
from moe.models import hugging_face as sizes_lib
from moe.models.functional import Functional
from moe.objectives import language
from moe.runs import hugging_face
from tasks import mixtures, registry
from tests.interop import answers, tiny_models

pytestmark = pytest.mark.nightly
transformers = pytest.importorskip(
  'transformers', reason='the extra `interop` is not installed'
)
torch = pytest.importorskip(
  'torch', reason='the extra `interop` is not installed'
)
TOKENS = np.random.RandomState(5).randint(3, 40, (2, 12))
NUM_GREEDY = 8


def loaded(directory):
  """Loads a model with transformers; fails if an array is missing or unused."""
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
      directory,
      dtype=torch.float32,
      attn_implementation='eager',
      output_loading_info=True,
    )
  assert not any(info.values()), info
  return model.eval()


def their_answer(model, tokens):
  """(logits, the tokens that greedy decoding adds to row 0)."""
  with torch.no_grad():
    ids = torch.tensor(tokens)
    logits = model(ids).logits.numpy()
    greedy = model.generate(
      ids[:1],
      attention_mask=torch.ones_like(ids[:1]),
      max_new_tokens=NUM_GREEDY,
      min_new_tokens=NUM_GREEDY,
      do_sample=False,
      eos_token_id=None,
    )
  return logits, greedy.numpy()[0, tokens.shape[1] :]


def assert_same_answers(theirs, ours):
  assert theirs[0].std() > 0.1
  np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4, rtol=0)
  np.testing.assert_array_equal(ours[1], theirs[1])


def random_model(name):
  config = transformers.AutoConfig.for_model(**tiny_models.config(name))
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config)
  with torch.no_grad():
    for parameter in model.parameters():
      # Larger weights, and norms that are not all 1, make errors visible.
      scale = 5.0 if parameter.ndim > 1 else 1.0
      parameter.mul_(scale).add_(torch.randn_like(parameter) * 0.05)
  return model


@pytest.mark.parametrize('is_original', [True, False])
@pytest.mark.parametrize('name', tiny_models.CONFIGS)
def test_a_model_of_theirs_computes_the_same_here(tmp_path, name, is_original):
  random_model(name).save_pretrained(tmp_path, save_original_format=is_original)
  imported = hugging_face.read_config(str(tmp_path))
  run = configuration.read(*imported.as_gin([])).run
  devices = jax.devices()[:1]
  params, state = hugging_face.read_weights(
    imported, run, str(tmp_path), devices
  )
  ours = answers.answer(run.model, params, state, TOKENS, NUM_GREEDY)
  assert_same_answers(their_answer(loaded(tmp_path), TOKENS), ours)


@pytest.mark.parametrize('is_fused', [False, True])
@pytest.mark.parametrize('name', tiny_models.CONFIGS)
def test_a_model_of_ours_computes_the_same_there(tmp_path, name, is_fused):
  golden = tiny_models.golden(name)
  (tmp_path / 'config.json').write_text(json.dumps(golden['config']))
  imported = hugging_face.read_config(str(tmp_path))
  # Our model scales the embeddings, and their models do not. So the export must
  # contain the scale, even if embedding and head share a table.
  run = configuration.read(*imported.as_gin(['EMBEDDING_SCALE=None'])).run
  init = Functional(run.model).init
  shapes = language.batch_shapes(1, 8)
  params, state = jax.jit(lambda key: init(key, shapes)[:2])(jax.random.key(0))
  random = np.random.RandomState(0)
  state = jax.tree.map(lambda a: random.uniform(-0.3, 0.3, a.shape), state)
  config = sizes_lib.to_config(run.model, 64, 'float32')
  (tmp_path / 'config.json').write_text(json.dumps(config))
  options = hugging_face.Options(is_fused=is_fused, shard_bytes=20_000)
  hugging_face.write_weights(run, params, state, str(tmp_path), config, options)
  state = jax.tree.map(lambda a: a.astype(np.float32), state)
  assert_same_answers(
    their_answer(loaded(tmp_path), TOKENS),
    answers.answer(run.model, params, state, TOKENS, NUM_GREEDY),
  )


@pytest.fixture(scope='module')
def exported(run_directory, tmp_path_factory):
  directory = tmp_path_factory.mktemp('hf') / 'model'
  assert convert.main(['to-hf', str(run_directory), str(directory)]) == 0
  return directory, configuration.load_run(str(run_directory))


def test_a_run_of_ours_writes_the_same_there(exported):
  directory, run = exported
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  inputs = tokenizer('春眠不覺曉', return_tensors='pt')
  tokens = inputs['input_ids'].numpy()
  assert tokens[0].tolist() == [0, *run.vocabulary.encode('春眠不覺曉')]
  params, state = jax.device_get((run.params, run.state))
  assert_same_answers(
    their_answer(loaded(directory), tokens),
    answers.answer(run.run.model, params, state, tokens, NUM_GREEDY),
  )


HARD = [
  '</s>',
  '<pad>a<unk>',
  '<0x41>',
  '\u2581 a',
  ' \u3000a  ',
  '\n\n\t\r',
  '龘😀é',
  '哈哈哈哈哈',
  '',
]


def texts(task):
  """Yields a task's validation texts; none if the machine lacks its files."""
  try:
    for document in registry.TASKS[task].documents('validation'):
      yield '\n'.join(document.values())
  except (OSError, ValueError):
    return


@pytest.fixture(scope='module')
def all_texts():
  assert 'builtin' in mixtures.registry.MIXTURES
  return HARD + [text for task in registry.TASKS for text in texts(task)]


@pytest.mark.parametrize('kind', ['bpe', 'unigram', 'char'])
def test_ids_are_ours_for_all_validation_texts(tmp_path, all_texts, kind):
  lines = all_texts[len(HARD) :: 7]
  path = tmp_path / 'tokenizer.model'
  vocabulary = train_vocabulary(lines, 6000, path, model_type=kind)
  for name, content in hugging_face_tokenizer.files(vocabulary, 128).items():
    (tmp_path / name).write_text(json.dumps(content), encoding='utf-8')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert len(all_texts) > 200
  for text in all_texts:
    if kind == 'unigram' and '<' in text:
      continue  # Their unigram model takes '<s>' in a text for a control token.
    ids = tokenizer(text, add_special_tokens=False)['input_ids']
    assert ids == vocabulary.encode(text), text
    assert tokenizer.decode(ids) == text
