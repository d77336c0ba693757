"""Writes a page of facts, scores and examples, and the scores as JSON."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moe import atomic_files
from moe.evaluate.score import Score, as_cells
from moe.report import templates


def write(
  directory: pathlib.Path,
  names: tuple[str, str],
  template: str,
  title: str,
  facts: Mapping[str, str],
  scores: Sequence[Score],
  **examples: Any,
) -> pathlib.Path:
  """Writes the page and the JSON file into an existing directory.

  Args:
    directory: where the files are written.
    names: file names of (page, JSON).
    template: a template that extends facts_page.html.
    title: title of the page.
    facts: facts about the model, for the head of the page.
    scores: all scores.
    **examples: values of further variables of the template.

  Returns:
    The file of the page.
  """
  page, json_file = names
  content = {'facts': dict(facts), 'scores': [s.as_json() for s in scores]}
  atomic_files.write_json(directory / json_file, content)
  text = templates.render(
    template,
    title=title,
    facts=facts,
    scores=as_cells(scores),
    command=scores[0].command if scores else '',
    **examples,
  )
  atomic_files.write_file(directory / page, text)
  return directory / page
