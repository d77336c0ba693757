import pytest

from tasks.pictures import scenes, sentences
from tasks.pictures.scenes import Scene, Thing


@pytest.mark.parametrize('text', ['這是貓', '貓', '一件貓的圖片', '圖中是貓'])
def test_every_sentence_of_a_name_is_right(text):
  assert sentences.agreement(text, {'name': '貓'}) == {'all': True}


@pytest.mark.parametrize('text', ['貓頭鷹', '這是貓頭鷹', '', '狗'])
def test_a_name_inside_another_name_is_wrong(text):
  assert sentences.agreement(text, {'name': '貓'}) == {'all': False}


def test_a_picture_without_a_name_has_nothing_to_check():
  assert sentences.agreement('任何句子', {'file': 'a.png'}) == {}


def test_an_emoji_has_a_style_and_a_name():
  facts = {'name': '笑臉', 'style': 'noto', 'tags': ['開心']}
  text = sentences.of_emoji('noto', '笑臉')
  assert all(sentences.agreement(text, facts).values())
  other = sentences.agreement(sentences.of_emoji('blobmoji', '笑臉'), facts)
  assert other == {'style': False, 'name': True, 'all': False}


def test_a_scene_is_checked_by_its_attributes():
  scene = Scene((Thing('紅', '圓形', '大'),), place='左上角')
  facts = {'kind': scene.kind, **scene.attributes}
  text = scenes.caption(scene, 0)
  assert sentences.agreement(text, facts)['all']
