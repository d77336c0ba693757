"""Parses JSON from sources that are not trusted."""

import json
from collections.abc import Callable
from typing import Any


def parse(
  content: str | bytes,
  object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """Returns the value that a JSON text describes.

  Args:
    content: the text.
    object_pairs_hook: makes the result for an object from its pairs; None makes
      a dict.

  Raises:
    ValueError: if the text is not JSON, or if brackets are nested so deep that
      `json.loads` raises a RecursionError.
  """
  try:
    return json.loads(content, object_pairs_hook=object_pairs_hook)
  except RecursionError as error:
    raise ValueError('JSON is nested too deep') from error
