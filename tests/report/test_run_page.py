"""The page about a run is complete, self-contained and correct."""

import html.parser
import io
import json
import re

import numpy as np
import pytest

from moe.evaluate import score
from moe.objectives import language
from moe.report import run_page
from moe.runs import gallery_file
from moe.runs.gallery_file import Gallery
from moe.train import progress
from tests.train import programs

OBJECTIVE = programs.LANGUAGE
SCORES = {'valid': OBJECTIVE.score}
VOID = {'meta', 'br', 'img', 'hr', 'input', 'link'}


PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
GALLERY = Gallery(
  ['一個圓', '一個方'],
  {20: PIXELS, 40: PIXELS},
  originals=PIXELS,
  made=PIXELS,
  captions=['圓形', '方形'],
  written=['圓形', '菱形'],
  labels=['圓', '方'],
  confusion=np.array([[3, 1], [0, 2]]),
)


class Balance(html.parser.HTMLParser):
  """A parser that checks that each start tag has an end tag."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def write_run(workdir, num_steps, layers=2, experts=4):
  shown = progress.Progress(workdir, OBJECTIVE, num_steps, stream=io.StringIO())
  for step in range(1, num_steps + 1):
    load = np.full((layers, experts), 1 / experts).tolist()
    numbers = {
      'tokens': 100,
      'loss': 5.0 / step,
      'bits_per_char': 9.0 - step / num_steps,
      'grad_norm': 1.0,
      'learning_rate': 0.001,
      'dropped_fraction': 0.02,
      'load_imbalance': 1.0,
    }
    if layers:
      numbers['layers'] = {'load': load}
    shown.step(step, numbers, 0.5)
  shown.evaluation(num_steps // 2, {'valid': {'bits_per_char': 7.25}}, SCORES)
  shown.evaluation(num_steps, {'valid': {'bits_per_char': 7.5}}, SCORES)
  shown.close()


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'small'
  write_run(workdir, 40)
  (workdir / 'baselines.json').write_text('{"unigram": 9.5, "bigram": 8.0}')
  attempts = [{'productive': 30.0, 'lost': 5.0}, {'productive': 60.0}]
  (workdir / 'goodput.json').write_text(json.dumps({'attempts': attempts}))
  run = {
    'goodput': {},
    'params_total': 5363200,
    'params_active': 1450000,
    'mesh': {'a': 2},
  }
  (workdir / 'run.json').write_text(json.dumps(run))
  samples = [{'prompt': '春風', 'text': '春風又綠江南岸'}]
  (workdir / 'samples.json').write_text(json.dumps(samples))
  (workdir / 'config.gin').write_text('NAME = "<b>"\n')
  (workdir / 'model.txt').write_text('params/head  (4, 8)\n')
  gallery_file.write(workdir, {'shapes': GALLERY})
  return run_page.write_report(workdir).read_text(encoding='utf-8')


def card(page, title):
  """Finds (number, remark) on the card with this title."""
  found = re.search(
    f'<h3>{title}</h3><b>(.*?)</b><p class="remark">(.*?)</p>', page
  )
  return found.groups()


def test_a_table_shows_where_the_time_of_each_attempt_went(page):
  table = page[page.index('<h2>Time</h2>') :].partition('</table>')[0]
  rows = re.findall('<tr><td>(.*?)</tr>', table)
  cells = [re.split('</td>(?:<td class="number">)?', row)[:-1] for row in rows]
  assert [[r[0], r[1], r[2], r[-1]] for r in cells] == [
    ['1', '30.0', '5.0', '35.0'],
    ['2', '60.0', '0.0', '60.0'],
    ['all', '90.0', '5.0', '95.0'],
    ['share', '94.7%', '5.3%', '100.0%'],
  ]


def test_the_cards_show_the_numbers_of_the_log(page):
  number, remark = card(page, 'Held out')
  assert number == '7.500'
  assert remark == (
    'bits per character on valid, step 40; best 7.250 at step 20'
  )
  assert card(page, 'Below unigram') == ('2.000', 'of 9.500 on valid')
  assert card(page, 'Below bigram') == ('0.500', 'of 8.000 on valid')
  # The run has 40 steps of 100 tokens. A step takes half a second.
  assert card(page, 'Tokens seen') == ('4 k', 'in 40 steps')
  assert card(page, 'Training time') == ('0:20', 'median 200 tokens/s')
  assert card(page, 'Parameters') == ('5.363 M', '1.45 M active per token')
  assert card(page, 'Dropped') == ('2.00%', 'mean of the last 4 steps')


def test_pictures_of_a_run_are_shown(page):
  begin = page.index('<h2>shapes: the same sentences')
  part = page[begin : page.index('<h2>Experts</h2>')]
  # Each of two steps has two drawn pictures. Each of two held-out pictures is
  # there twice: the original, and the reconstruction.
  assert part.count('src="data:image/png;base64,') == 4 + 4
  assert '<td lang="zh-Hant">方形</td><td lang="zh-Hant">菱形</td>' in part
  # Three of four circles are right. If all were, the cell would have 60% of the
  # colour. So it has 0.75 x 60% = 45%.
  assert re.search(r'series1\) 45%, transparent\)">3</td>', part)
  assert '5 of 6 are right' in part


def test_the_page_needs_no_other_file(page):
  addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s]+)', page)
  assert all(a.startswith(('data:', '#')) for a in addresses)
  assert '<script' not in page


def test_the_tags_match(page):
  parser = Balance()
  parser.feed(page)
  assert parser.open == []


def test_texts_and_samples_are_there_and_escaped(page):
  assert 'NAME = &#34;&lt;b&gt;&#34;' in page
  assert 'params/head  (4, 8)' in page
  assert '<i>春風</i>又綠江南岸' in page
  assert '<th>mesh.a</th><td>2</td>' in page


def test_figures_take_their_colours_from_the_page(page):
  colors = set(re.findall(r'(?:fill|stroke): (#\w+)', page))
  # Only three colours do not depend on light or dark mode: the end of the
  # colour bar and the lines of two layers. They are visible on white and on
  # black.
  assert colors == {'#fde725', '#3b528b', '#bddf26'}
  assert page.count('<svg') == 9


def test_a_dense_run_of_one_step_has_a_page(tmp_path):
  write_run(tmp_path, 1, layers=0)
  page = run_page.write_report(tmp_path, tmp_path / 'other.html').read_text()
  assert 'load of each expert' not in page
  assert card(page, 'Tokens seen') == ('100', 'in 1 step')


def test_a_log_alone_is_enough(tmp_path):
  record = {'step': 1, 'loss': None, 'time': {}}
  (tmp_path / 'log.jsonl').write_text(json.dumps(record) + '\n{"step": 2, "lo')
  assert run_page.write_report(tmp_path) == tmp_path / 'report.html'


def test_a_long_run_of_many_layers_is_thinned(tmp_path):
  load = np.full((14, 2), 0.5).tolist()
  with open(tmp_path / 'log.jsonl', 'w') as file:
    for step in range(1, 1501):
      record = {'step': step, 'bits_per_char': 9.0, 'layers': {'load': load}}
      file.write(json.dumps(record) + '\n')
  page = run_page.write_report(tmp_path).read_text()
  assert page.count('sparse layer ') == 12
  assert len(page) < 300_000


def layer_rows(page):
  """Finds the header and the rows of the table of layers."""
  table = re.search('<div class="wide table">(.*?)</table>', page, re.DOTALL)
  rows = table.group(1).split('</tr>')[:-1]
  return [re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row) for row in rows]


def test_loads_are_shown_by_modality(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, 20, stream=io.StringIO())
  for step in range(1, 21):
    layers = {
      'load': [[0.5, 0.25, 0.25]],
      'load_text': [[1.0, 0.0, 0.0]],
      'load_image': [[0.0, 0.5, 0.5]],
    }
    shown.step(step, {'tokens': 100, 'layers': layers}, 0.1)
  shown.close()
  page = run_page.write_report(tmp_path).read_text()
  assert 'Tokens of text alone sent to each expert' in page
  assert 'Tokens of image alone sent to each expert' in page
  header, row = layer_rows(page)
  assert header[-3:] == ['idle for text', 'idle for image', 'idle experts']
  assert row[-3:] == ['2', '1', 'none']
  # Now one expert is for text alone, and two are for images.
  reserved = {'experts_reserved_text': 1, 'experts_reserved_image': 2}
  (tmp_path / 'run.json').write_text(json.dumps(reserved))
  _, row = layer_rows(run_page.write_report(tmp_path).read_text())
  assert row[-3:] == ['0', '0', 'none']


def test_a_table_has_a_row_for_each_layer(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, 120, stream=io.StringIO())
  for step in range(1, 121):
    layers = {
      'load': [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]],
      'entropy': [2.0, 1.0],
      'dropped_fraction': [0.0, 0.125],
      'bytes_exchanged': [4096.0, 8192.0],
    }
    shown.step(step, {'tokens': 100, 'layers': layers}, 0.1)
  shown.close()
  header, *rows = layer_rows(run_page.write_report(tmp_path).read_text())
  assert header == [
    'sparse layer', 'busiest / mean', 'variation', 'entropy [nats]', 'dropped',
    'bytes exchanged', 'idle experts',
  ]  # fmt: skip
  # In the two layers, the loads divided by their mean are (1.5, 1.5, 0) and
  # (1.5, 0.75, 0.75).
  assert rows == [
    ['0', '1.50', '0.71', '2.00', '0.00%', '4,096', '2'],
    ['1', '1.50', '0.35', '1.00', '12.50%', '8,192', 'none'],
  ]


def test_a_run_with_dead_experts_has_a_figure_of_them(tmp_path):
  for name, load in (('healthy', 0.5), ('sick', 0.0)):
    shown = progress.Progress(
      tmp_path / name, OBJECTIVE, 110, stream=io.StringIO()
    )
    for step in range(1, 111):
      layers = {'load': [[1 - load, load]]}
      shown.step(step, {'tokens': 100, 'layers': layers}, 0.1)
    shown.close()
  pages = [
    run_page.write_report(tmp_path / name).read_text()
    for name in ('healthy', 'sick')
  ]
  assert ['Experts without tokens' in page for page in pages] == [False, True]


def test_scores_of_other_documents_do_not_count(tmp_path):
  shown = progress.Progress(tmp_path, OBJECTIVE, 3, stream=io.StringIO())
  numbers = {'loss': 1.0, 'bits_per_char': 8.0, 'tokens': 100}
  for step, data, bits in ((1, 'old', 2.0), (2, 'new', 7.0), (3, 'new', 8.0)):
    shown.step(step, numbers, 0.5)
    results = {
      'other': {'bits_per_char': 5.0},
      'valid': {'bits_per_char': bits},
    }
    scores = dict.fromkeys(results, language.BITS_PER_CHAR)
    shown.evaluation(step, results, scores, {'other': 'same', 'valid': data})
  shown.close()
  baselines = {
    'task': 'valid',
    'held_out': 'new',
    'scores': [score.Score('unigram', 9.5).as_json()],
  }
  path = tmp_path / 'baselines.json'
  path.write_text(json.dumps(baselines))
  page = run_page.write_report(tmp_path).read_text(encoding='utf-8')
  assert 'step 3; best 7.000 at step 2; scores up to step 1 are of' in page
  assert card(page, 'Below unigram') == ('1.500', 'of 9.500 on valid')
  path.write_text(json.dumps({**baselines, 'held_out': 'old'}))
  page = run_page.write_report(tmp_path).read_text(encoding='utf-8')
  assert 'Below unigram' not in page


def test_a_folding_run_has_its_score_and_a_figure_for_each_term(tmp_path):
  step = {'loss': 3.0, 'lddt': 0.25, 'lddt_mean': 0.15, 'fape': 1.5}
  step |= {'ca_clashes': 0.1, 'mirror_is_worse': 0.5}
  for name, records in (
    ('log', [step] * 2),
    ('eval', [{'eval': {'chains': {'lddt_mean': x}}} for x in (0.2, 0.4)]),
  ):
    lines = [json.dumps({'step': i + 1, **r}) for i, r in enumerate(records)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines) + '\n')
  page = run_page.write_report(tmp_path).read_text(encoding='utf-8')
  assert 'far lDDT on chains, step 2' in page and '>0.400<' in page
  assert 'chains, mean of lDDT and far lDDT</th>' in page
  assert 'bits per character' not in page
  for title in (
    'FAPE of backbone frames',
    'Share of other CA pairs below 3 Å',
    'Share of chains whose mirror image fits worse',
  ):
    assert title in page
  assert 'Distogram' not in page
