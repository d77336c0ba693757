"""Renders the templates of pages, which are files in this folder."""

import pathlib
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
  """Renders a template; returns the HTML of a page.

  Args:
    template: name of a file in this folder, such as 'run_page.html'.
    **values: variables of the template. Text is escaped for HTML.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(**values)
