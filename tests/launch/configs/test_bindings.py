"""A mistake in a gin file gives one sentence, with its place and a remedy."""

import pytest

from launch.configs import bindings, reach
from moe.runs import run

# The first line of each file; a mistake follows it.
BASE = "include 'runs/quickstart.gin'\n"
IMPORTS = """from __gin__ import dynamic_registration
from moe.layers import moe_layer
from moe.optim import optimizers
from moe.routing import gates
"""

# Mistake -> (lines after the first, parts of the message). FILE is the path.
IN_FILES = {
  'misspelt macro': (
    'D_MODLE = 64\n',
    ["FILE:2: nobody reads 'D_MODLE'", "did you mean 'D_MODEL'?"],
  ),
  'unread macro': ('SPARE_PARTS = 1\n', ["FILE:2: nobody reads 'SPARE_PARTS'"]),
  'undefined macro': (
    'D_MODEL = %WIDTH\n',
    ["FILE:2: '%WIDTH' is defined nowhere", '--gin.WIDTH=VALUE'],
  ),
  'undefined macro with a near one': (
    'D_FF = %D_MODLE\n',
    ["FILE:2: '%D_MODLE' is defined nowhere", "did you mean 'D_MODEL'?"],
  ),
  'macro of itself': (
    'D_MODEL = %D_FF\nD_FF = %D_MODEL\n',
    ["'%D_", 'must not be defined by itself'],
  ),
  'unknown parameter': (
    IMPORTS + 'gates.TopK.renormalise = False\n',
    ["FILE:6: 'gates.TopK' has no 'renormalise'", "mean 'renormalize'?"],
  ),
  'unknown parameter in a block': (
    IMPORTS + 'moe_layer.MoE:\n  num_experts = 4\n  expert_dff = 8\n',
    ["FILE:8: 'moe_layer.MoE' has no 'expert_dff'", "mean 'expert_d_ff'?"],
  ),
  'unknown attribute': (
    IMPORTS + 'ROUTER = @gates.Top_K\n',
    ["FILE:6: 'gates.Top_K' does not exist", "did you mean 'TopK'?"],
  ),
  'module not imported': (
    IMPORTS + 'optimiser.adamw.b1 = 0.8\n',
    ["FILE:6: 'optimiser'", 'is not imported here', "mean 'optimizers'?"],
  ),
  'unknown module': (
    'from __gin__ import dynamic_registration\nfrom moe.routing import gate\n',
    ['FILE:3: cannot import moe.routing.gate', "mean 'moe.routing.gates'?"],
  ),
  'unknown package': (
    'from __gin__ import dynamic_registration\nimport moe.routng.gates\n',
    ['FILE:3: cannot import moe.routng.gates', "mean 'moe.routing'?"],
  ),
  'a module where a class is meant': (
    IMPORTS + 'gates.num_active = 1\n',
    ["FILE:6: 'gates' must be a class or a function, got a module"],
  ),
  'unread binding': (
    IMPORTS + 'optimizers.adafactor.momentum = 0.9\n',
    ["FILE:6: nobody reads 'adafactor.momentum'", 'refers to @adafactor'],
  ),
  'text for a number': (
    "D_MODEL = '64'\n",
    ["FILE:2: 'D_MODEL' must be int, got '64' (str)"],
  ),
  'a fraction for a whole number': (
    'TRAIN_STEPS = 1e3\n',
    ["FILE:2: 'TRAIN_STEPS' must be int, got 1000.0 (float)"],
  ),
  'a number for text': (
    'RULES = 1\n',
    ["FILE:2: 'RULES' must be str, got 1 (int)"],
  ),
  'a number for a truth value': (
    'DENSE_TWIN = 1\n',
    ["FILE:2: 'DENSE_TWIN' must be bool, got 1 (int)"],
  ),
  'a truth value for a number': (
    'NUM_LAYERS = True\n',
    ["FILE:2: 'NUM_LAYERS' must be int, got True (bool)"],
  ),
  'nothing for a number': (
    'LEARNING_RATE = None\n',
    ["FILE:2: 'LEARNING_RATE' must be float, got None"],
  ),
  'text for a list of texts': (
    "EVAL_TASKS = 'builtin'\n",
    ["FILE:2: 'EVAL_TASKS' must be Sequence[str], got 'builtin'"],
  ),
  'a wrong entry in a list': (
    'FROZEN = ("a", 3)\n',
    ["FILE:2: 'FROZEN' must be Sequence[str]"],
  ),
  'a pair that is none': (
    'INITIAL_ASSIGNMENT = (("a", "b", "c"),)\n',
    ["FILE:2: 'INITIAL_ASSIGNMENT' must be Sequence[tuple[str, str | None]]"],
  ),
  'a reference for a number': (
    IMPORTS + 'TOP_K = @gates.TopK()\n',
    ["FILE:6: 'TOP_K' must be int, got @gates.TopK()"],
  ),
  'a value for a reference': (
    'ROUTER = "top_k"\n',
    [
      "FILE:2: 'ROUTER' must be a reference @name, without (), to what makes",
      "Router, got 'top_k'",
    ],
  ),
  'an object of another class': (
    IMPORTS + 'MODEL = @gates.TopK()\n',
    ["FILE:6: 'MODEL' must be Decoder, got @gates.TopK()"],
  ),
  'a class for its object': (
    IMPORTS + 'MODEL = @gates.TopK\n',
    ["FILE:6: 'MODEL' must be Decoder, got @gates.TopK"],
  ),
  'a called router': (
    IMPORTS + 'ROUTER = @gates.TopK()\n',
    [
      'to what makes Router, got @gates.TopK(): write @gates.TopK, without ()',
    ],
  ),
  'a called layer': (
    IMPORTS.replace('moe_layer', 'attention')
    + 'ATTENTION = @attention.Attention()\n',
    [
      'to what makes Attention or LatentAttention, got @attention.Attention()',
      ': write @attention.Attention, without ()',
    ],
  ),
  'a called optimizer': (
    IMPORTS + 'OPTIMIZER = @optimizers.adamw()\n',
    ['got @optimizers.adamw(): write @optimizers.adamw, without ()'],
  ),
  'a called objective': (
    'from moe.objectives import language\nfrom moe.runs import run\n'
    'run.Run.objective = @language.language_model()\n',
    ['to what makes Objective, got', 'language_model, without ()'],
  ),
  'a schedule that is not made': (
    'from moe.optim import schedules\nfrom moe.runs import run\n'
    'run.Run.schedule = @schedules.wsd\n',
    [
      "'Run.schedule' must be a function, got @schedules.wsd: write"
      ' @schedules.wsd(), with ()',
    ],
  ),
  'a transform that is not made': (
    'from moe.data import transforms\nfrom moe.runs import run\n'
    'run.Data.transforms = (("a", @transforms.MaskBlocks),)\n',
    [': write @transforms.MaskBlocks(), with ()'],
  ),
  'a layer for a router': (
    IMPORTS + 'ROUTER = @moe_layer.MoE\n',
    ['without (), to what makes Router, got @moe_layer.MoE.'],
  ),
  'a router for an optimizer': (
    IMPORTS + 'OPTIMIZER = @gates.TopK\n',
    ['to what makes GradientTransformation, got @gates.TopK.'],
  ),
  'a layer for another one': (
    IMPORTS.replace('moe_layer', 'feed_forward')
    + 'ATTENTION = @feed_forward.FeedForward\n',
    ['to what makes Attention or LatentAttention, got @feed_forward'],
  ),
  'what a layer gives': (
    IMPORTS + 'gates.TopK.num_active = 1\n',
    ["FILE:6: nobody reads 'TopK.num_active'", 'set TOP_K'],
  ),
  'a scope': (
    IMPORTS + 'second/gates.TopK.num_active = 1\n',
    ["FILE:6: the scope 'second/' is entered nowhere"],
  ),
  'a number that is none': (
    'D_MODEL = 6 4\n',
    ['FILE:2: cannot be read as gin'],
  ),
  'missing include': (
    "include 'models/tinny.gin'\n",
    ["FILE:2: gin file 'models/tinny.gin'", "mean 'models/tiny.gin'?"],
  ),
  'no value': ('D_MODEL =\n', ['FILE:2: cannot be read as gin']),
  'no sign': ('D_MODEL 64\n', ['FILE:2: cannot be read as gin', "'='"]),
  'text without quotes': (
    'TASK = builtin\n',
    ['FILE:2: cannot be read as gin (builtin is no value)', 'need quotes'],
  ),
  'open bracket': ('FROZEN = ("a",\n', ['FILE:3: cannot be read as gin']),
  'block without indentation': (
    IMPORTS + 'gates.TopK:\nnum_active = 1\n',
    ['FILE:7: cannot be read as gin', 'indentation'],
  ),
}

ON_THE_COMMAND_LINE = {
  'D_MODLE=64': ['--gin.D_MODLE=64: nobody reads', "did you mean 'D_MODEL'?"],
  'TASK=builtin': ['--gin.TASK=builtin: cannot be read', 'text values need'],
  'D_MODEL': ['--gin.D_MODEL: write --gin.NAME=VALUE'],
  'D_MODEL=': ['--gin.D_MODEL=: cannot be read as gin'],
  'D_MODEL="64"': ["--gin.D_MODEL=\"64\": 'D_MODEL' must be int, got '64'"],
  'gates.TopK.k=3': ["--gin.gates.TopK.k=3: 'gates.TopK' has no 'k'"],
  'gate.TopK.num_active=3': ["'gate' of 'gate.TopK'", "mean 'gates'?"],
  'ROUTER=@gates.Swich': ["'gates.Swich' does not exist", "mean 'Switch'?"],
  'run.Run.mesh=@run.Initial()': ["'Run.mesh' must be MeshShape"],
}


def message_of(files, overrides=()):
  with pytest.raises(ValueError) as error:
    reach.check(bindings.read(files, list(overrides)).bindings, run.Run)
  return str(error.value)


def accepted(files, overrides=()):
  """The bindings of files and overrides; fails if they contain a mistake."""
  bound = bindings.read(files, list(overrides)).bindings
  reach.check(bound, run.Run)
  return bound


@pytest.fixture
def write(tmp_path):
  def write(text, name='run.gin'):
    (tmp_path / name).write_text(text, encoding='utf-8')
    return str(tmp_path / name)

  return write


@pytest.mark.parametrize('mistake', IN_FILES)
def test_a_mistake_in_a_file_is_reported_with_its_place(write, mistake):
  lines, fragments = IN_FILES[mistake]
  path = write(BASE + lines)
  message = message_of([path])
  for fragment in fragments:
    assert fragment.replace('FILE', path) in message
  assert '\n' not in message


@pytest.mark.parametrize('text', ON_THE_COMMAND_LINE)
def test_a_mistake_on_the_command_line_is_reported_with_its_flag(write, text):
  message = message_of([write(BASE)], [text])
  for fragment in ON_THE_COMMAND_LINE[text]:
    assert fragment in message
  assert '\n' not in message


def test_the_base_of_the_mistakes_is_none(write):
  bound = accepted([write(BASE + IMPORTS)], ['D_MODEL=64'])
  assert (bound[-1].argument, bound[-1].value) == ('D_MODEL', 64)


def test_a_mistake_is_placed_in_the_file_that_is_included(write):
  inner = write('\n\nD_MODLE = 3\n', 'inner.gin')
  outer = write(BASE + f"include '{inner}'\n")
  assert f"{inner}:3: nobody reads 'D_MODLE'" in message_of([outer])


def test_a_wrong_value_is_placed_where_its_macro_is_set_last(write):
  first = write(BASE + 'D_MODEL = 1.5\n')
  second = write('# nothing\nD_MODEL = 2.5\n', 'second.gin')
  assert f"{second}:2: 'D_MODEL' must be int" in message_of([first, second])
  # A wrong value is no mistake if a later file overrides it.
  third = write('D_MODEL = 16\n', 'third.gin')
  assert accepted([first, second, third])[-1].value == 16


def test_a_missing_file_is_reported_with_the_nearest_one():
  message = message_of(['gin_configs/runs/quikstart.gin'])
  assert "'gin_configs/runs/quikstart.gin' must exist" in message
  assert "did you mean 'runs/quickstart.gin'?" in message


@pytest.mark.parametrize('lines', ['D_MODEL =\n', 'D_MODEL 64\n'])
def test_quotes_are_advised_only_where_a_word_lacks_them(write, lines):
  assert 'need quotes' not in message_of([write(BASE + lines)])


def test_an_undefined_macro_names_the_files_that_define_it(write):
  lines = "include 'models/tiny.gin'\ninclude 'tasks/builtin.gin'\n"
  lines += "include 'runs/train.gin'\n"
  message = message_of([write(lines)])
  assert 'train.gin:' in message and "'%MESH' is defined nowhere" in message
  assert message.endswith(
    '; include parallel/data.gin, or set --gin.MESH=VALUE.'
  )


def test_a_line_above_an_include_that_overrides_it_is_refused(write):
  path = write('D_MODEL = 64\n' + BASE)
  message = message_of([path])
  assert message.startswith(f"{path}:1: 'D_MODEL' must stand below the include")
  assert f'of {path}:2' in message and 'models/tiny.gin:5' in message
  # A line above an include is accepted if the include binds the same value.
  assert accepted([write('D_MODEL = 128\n' + BASE)])


def test_an_include_is_looked_for_beside_the_file_that_includes(
  write, tmp_path, monkeypatch
):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  write(BASE + 'D_MODEL = 32\n', 'inner.gin')
  outer = write("include 'inner.gin'\n", 'outer.gin')
  assert accepted([outer])[-1].value == 32


def test_files_that_include_each_other_are_refused(write, tmp_path):
  write(f"include '{tmp_path}/b.gin'\n", 'a.gin')
  write(f"include '{tmp_path}/a.gin'\n", 'b.gin')
  assert 'a.gin: includes itself' in message_of([str(tmp_path / 'a.gin')])


def test_a_file_that_is_no_text_is_refused(tmp_path):
  path = tmp_path / 'run.gin'
  path.write_bytes(BASE.encode() + '# 詩'.encode('big5') + b'\n')
  assert message_of([str(path)]).startswith(f'{path}: must be UTF-8 text')


def test_windows_line_ends_and_comments_are_no_mistake(tmp_path):
  path = tmp_path / 'run.gin'
  path.write_bytes(BASE.encode() + '# 詩\r\nD_MODEL = 32\r\n'.encode())
  bound = accepted([str(path)])
  assert bound[-1].value == 32 and bound[-1].place == f'{path}:3'


def test_a_choice_can_be_overridden_without_what_was_bound_for_it(write):
  # The files still bind adamw.weight_decay, which adafactor does not read.
  choice = 'run.Run.optimizer=@optimizers.adafactor'
  assert accepted([write(BASE)], [choice])[-1].argument == 'optimizer'
  imports = IMPORTS + 'from moe.runs import run\n'
  path = write(BASE + imports + choice.replace('=@', ' = @') + '\n')
  assert accepted([path])[-1].argument == 'optimizer'


def test_macros_of_a_choice_that_is_overridden_need_no_value(write):
  lines = IMPORTS + 'gates.TopK.renormalize = %SWITCHED\n'
  assert "'%SWITCHED' is defined nowhere" in message_of([write(BASE + lines)])
  path = write(BASE + lines + 'ROUTER = @gates.Switch\n')
  assert accepted([path])[-1].argument == 'ROUTER'


def test_what_is_bound_for_a_choice_that_was_overridden_before_is_unread(write):
  lines = 'run.Run.optimizer = @optimizers.adafactor\nWEIGHT_DECAY = 0.5\n'
  path = write(BASE + IMPORTS + 'from moe.runs import run\n' + lines)
  assert f"{path}:8: nobody reads 'WEIGHT_DECAY'" in message_of([path])
  overrides = ['WEIGHT_DECAY=0.5', 'run.Run.optimizer=@optimizers.adafactor']
  message = message_of([write(BASE)], overrides)
  assert "--gin.WEIGHT_DECAY=0.5: nobody reads 'WEIGHT_DECAY' any" in message
  assert "bind 'optimizers.adafactor.weight_decay' instead" in message


def test_values_of_the_right_types_are_taken(write):
  good = """LEARNING_RATE = 1
INITIAL_ASSIGNMENT = (('a/(.*)', r'b/\\1'), ('c', None))
PROFILE_STEPS = (3, 5)
FROZEN = ['a', 'b']
EVAL_TASKS = ()
D_MODEL = %D_FF
"""
  taken = {b.argument: b.value for b in accepted([write(BASE + good)])}
  assert (taken['LEARNING_RATE'], taken['EVAL_TASKS']) == (1, ())
  assert (taken['PROFILE_STEPS'], taken['FROZEN']) == ((3, 5), ['a', 'b'])


OWN = """
import dataclasses
import optax

class Alone:  # no layer of ours, but it has all methods of one
  anatomy = update_state = None

def optimizer(schedule):
  return optax.sgd(schedule)

@dataclasses.dataclass
class Constant:
  learning_rate: float = 0.1
  def __call__(self, step):
    return self.learning_rate
"""


def test_what_a_user_wrote_fits_if_it_answers_the_same(write, monkeypatch):
  path = write(OWN, 'own_parts.py')
  monkeypatch.syspath_prepend(path.removesuffix('/own_parts.py'))
  lines = 'import own_parts\n' + IMPORTS
  lines += 'from moe.models import block\nfrom moe.runs import run\n'
  lines += 'block.Block.moe = @own_parts.Alone\n'
  lines += 'OPTIMIZER = @own_parts.optimizer\n'
  lines += 'run.Run.schedule = @own_parts.Constant()\n'
  assert accepted([write(BASE + lines)])[-1].argument == 'schedule'


def test_a_module_can_be_imported_as_python_does(write):
  lines = IMPORTS + 'import moe.layers.attention\n'
  lines += 'moe.layers.attention.Attention.num_heads = 2\n'
  bound, imports = bindings.read([write(BASE + lines)], [])
  reach.check(bound, run.Run)
  assert bound[-1].name == 'moe.layers.attention.Attention'
  assert 'import moe.layers.attention' in [s.format() for s in imports]


def test_two_modules_of_one_name_get_two_names(write):
  first = write(BASE + 'from moe.layers import norm as dispatch\n')
  second = write('from moe.routing import gates as dispatch\n', 'second.gin')
  _, imports = bindings.read([first, second], [])
  statements = [s.format() for s in imports]
  assert 'from moe.routing import dispatch' in statements
  assert 'from moe.layers import norm as dispatch_2' in statements
  # Several files import `gates`, but there is one import, with one name.
  assert 'from moe.routing import gates' in statements


def test_a_file_names_modules_where_they_were(write):
  lines = """from launch import config
from moe.train import objective as old
config.Run.clip_norm = 3.0
old.language_model.logits_z = 1e-4
"""
  bound = accepted([write(BASE + lines)], ['run.Run.clip_norm=2.0'])
  assert bound[-3].target is run.Run
  names = [f'{b.name}.{b.argument}' for b in bound[-3:]]
  assert names == [
    'run.Run.clip_norm',
    'language.language_model.logits_z',
    'run.Run.clip_norm',
  ]
