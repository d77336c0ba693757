"""The templates of pages, which lie beside this file."""

import pathlib
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
  """The text of a page.

  Args:
    template: name of a file beside this one, such as 'run_page.html'.
    **values: what the template shows; text is escaped.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(**values)
