"""Sentences about pictures that have a name, and the check of a sentence."""

import re
from collections.abc import Mapping

from tasks.pictures import scenes

CLOTHES = ('一件{}的圖片', '圖中是{}', '{}', '這是{}')
# The name of each label of Fashion-MNIST.
CLOTHES_NAMES = (
  *('T恤／上衣', '長褲', '套頭衫', '洋裝', '大衣'),
  *('涼鞋', '襯衫', '運動鞋', '包包', '短靴'),
)
HANZI = '寫一個「{}」字'
EMOJI = '{style}風格：{name}'
EMOJI_STYLES = {'noto': '諾托', 'emojitwo': '雙彩', 'blobmoji': '水滴'}

# What a sentence may say around the name. The last pattern fits every text.
_PATTERNS = tuple(
  re.compile(re.escape(template).replace(r'\{\}', '(?P<name>.+)'))
  for template in (HANZI, *sorted(CLOTHES, key=len, reverse=True))
)
_EMOJI = re.compile(
  f'(?P<style>{"|".join(EMOJI_STYLES.values())})風格：(?P<name>.+)'
)


def of_emoji(style: str, name: str) -> str:
  """The sentence about an emoji; `style` is a key of `EMOJI_STYLES`."""
  return EMOJI.format(style=EMOJI_STYLES[style], name=name)


def agreement(text: str, facts: Mapping[str, str | int]) -> dict[str, bool]:
  """Tells which attributes of a picture a sentence gets right.

  Args:
    text: a sentence.
    facts: facts that are stored with the picture. They describe a scene, or
      have a `name`, and for an emoji a `style`.

  Returns:
    The result of `scenes.agreement` for a scene. For a picture with a name,
    attribute -> whether the sentence gets it right, and 'all'. {} for a picture
    with neither, such as one of a user's folder.
  """
  if 'kind' in facts:
    return scenes.agreement(text, scenes.of_facts(facts))
  if 'name' not in facts:
    return {}
  if 'style' not in facts:
    found = [pattern.fullmatch(text.strip()) for pattern in _PATTERNS]
    names = {match['name'] for match in found if match}
    return {'all': facts['name'] in names}
  found = _EMOJI.fullmatch(text.strip())
  right = {
    'style': found is not None
    and found['style'] == EMOJI_STYLES[facts['style']],
    'name': found is not None and found['name'] == facts['name'],
  }
  return {**right, 'all': all(right.values())}
