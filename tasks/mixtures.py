"""The import of this module declares our tasks of text and their mixtures.

To add a corpus, add a file beside this one and its name in the import below. A
mixture is one line. The rate of a corpus is its size in characters, so that
every document is seen equally often. In a mixture, no corpus trains on
documents that another corpus holds out. There is one exception: four of the
3,588 poems and lyrics that poems_shi and ci hold out are in both corpora.
"""

from tasks import (  # noqa: F401  These imports declare the tasks.
  builtin,
  ci,
  classics,
  couplets,
  dialogues,
  laws,
  poems,
  prose,
  registry,
  zh_en,
)

BUILTIN = (
  'builtin_couplets',
  'builtin_poems',
  'builtin_essays',
  'builtin_dialogues',
)
VERSE = ('poems_shi', 'poems_inverse', 'ci', 'couplets_verse_lm')
CLASSICAL = ('poems_shi', 'ci', 'qu', 'classics')
MODERN = ('luxun_hant', 'novels_hant', 'react_docs', 'laws', 'persona_prompts')
TALK = ('kdconv', 'crosswoz', 'chatterbot')
PAIRS = ('tatoeba_en_zh', 'tatoeba_zh_en', 'law_en_zh', 'law_zh_en')

registry.add_mixture('builtin', BUILTIN)
registry.add_mixture('verse', VERSE)
registry.add_mixture('zh_classical', CLASSICAL)
registry.add_mixture('zh_prose', MODERN)
registry.add_mixture('zh_talk', TALK)
registry.add_mixture('zh_mix', CLASSICAL + MODERN + TALK)
registry.add_mixture('zh_en', PAIRS)
