"""Reads JSON that may come from anywhere."""

import json
from collections.abc import Callable
from typing import Any


def parse(
  content: str | bytes,
  object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """The value that a JSON text describes.

  Args:
    content: the text.
    object_pairs_hook: makes an object of its pairs; by default a dict.

  Raises:
    ValueError: if the text is not JSON. Python raises another error where
      brackets are nested too deep; here it is the same error.
  """
  try:
    return json.loads(content, object_pairs_hook=object_pairs_hook)
  except RecursionError as error:
    raise ValueError('JSON is nested too deep') from error
