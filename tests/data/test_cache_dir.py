from moe.data.cache_dir import default_cache_dir


def test_the_default_directory_is_that_of_the_environment(monkeypatch):
  monkeypatch.setenv('WUDAO_CACHE', '/somewhere')
  assert default_cache_dir() == '/somewhere'
  monkeypatch.delenv('WUDAO_CACHE')
  monkeypatch.setenv('HOME', '/home/who')
  assert default_cache_dir() == '/home/who/.cache/wudao'
