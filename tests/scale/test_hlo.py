import pytest

from moe.scale import hlo
from tests.scale.programs import LOOPS


def test_dims_memory_and_path_of_an_instruction():
  module = hlo.parse(LOOPS)
  product = module.computations['product']
  assert product['a'].shapes == (hlo.Shape('bf16', (2, 8), space=1),)
  assert product['a'].shapes[0].bytes == 2 * 2 * 8
  assert product['c'].op_name == 'jit(f)/dot'
  assert [s.dims for s in module.computations['outer']['while.3'].shapes] == [
    (),
    (),
  ]


def test_a_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule nothing\n')
