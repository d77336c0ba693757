"""Versions of the task code that make the same documents.

A token store keeps the SHA-256 of the code that read its documents, and is made
again when that code changes. If a change alters no document, such as a better
docstring, the SHA-256 of the new version is added here, so that old stores stay
valid. If a change alters documents, the new SHA-256 replaces the whole tuple.
"""

# File -> SHA-256 of each of its versions, the oldest first.
EQUAL = {
  'registry.py': (
    'b805834f90b93838ed70ccdb5b1971a7f583fb0c68cede5815a8bb2a9529314b',
    '4cd94c261b989dafe24f2fd8a6d87182273dba03b0c6d6bde95e53caeb6266aa',
    '4a9af5edbdc45cd7b113ad7176426d7537145019df23b02287ca463032914308',
    '6aff8d80ba4eb3d5982ba1b892d6a9d2a80bda4d773520450cef343b65af740f',
    '6b271cdf4c88dfdedfa22b0103c0f71e919f8741d90ced58dfc699e387f83aa7',
  ),
  'text_files.py': (
    'c48e9d3a6877c8a3d3d08369075c8c6cd34c78bdb85b8900344d8f89eb9df6e6',
    '91ff849c4dee52d0a8b0b820824f86dc783bafb92a3e9b61be70f32b55cbc47b',
    '6bb4a364a064cc5d46c3cdf6d6b1152cf9e3a532a8c51c6b5fe83606e82f784b',
    'feb0977079aa527479f0fe0866ff62f49eab98226320ba8c71730f6606b68925',
    'bdbba6541354415fd53145430bb2ff6425edca2c6f90703f78454b701bc4fd7c',
  ),
  'splits.py': (
    '79bd4ba5c8366b0083d5e1b1d90173fe9073e68a9801efe063f4c82431a930ed',
    '27c3b73829d017be8ba32ecdfd24ce5256ccf48dcaf4f4413f7d267cc4d21938',
    'e4c4c0e72ce657da2e6e81c60fa9973a1d652867029874aae8326de78bc63b4a',
  ),
  'builtin.py': (
    '4bcc7a574a4118e0a6e759d48b78e7f67a27b54e5a2dac9ea5a4b8bed0ef108e',
    'db7752dec9b8ece3bda6fa066973a4db2bb49700f73228b8c4761c7aae1f855e',
    '77fd4589b8d44313a3714280940d672c7a24b896ce8d4a574db05ddd88fb90db',
  ),
  'ci.py': (
    '6fc346aa1f6338ef50b69a5d1a14d7011cdc3fb5e5aab70ebb3be79c81181e55',
    'fde60be7849e9a4ffcc1ad63b1f89dea54d2db1d12267bfeae325cfd10a32bdd',
    '443cee7b874b9b395f04fca6a5e5bd8813b7df5373416b73c9a44cd3e2fe36dc',
    '8657d76e0181d20e2be0a5b1cbd330c36a4c32a541dc1cdaa877dc71070021dc',
  ),
  'classics.py': (
    'bfba6772f6c2909060aee8c1634c0614cf4d6868fcc9bf09f908bc1588eab980',
    '81ae5454b75417a362af63960eed951d440117caca628b32c4177e1a6382079f',
    'd23e95c57d0f99eae6211833a2742636290d2ff57ecc4026163d1263fff14a23',
    '17e219e7a59bfd3a84e4d46a1a275c3c3a7b586f760d27dc96c4513c0c8a80cf',
  ),
  'couplets.py': (
    '91651c2f0e8d6c55e58ccc161973d7fcfbe83707dcaab9c9cf5fa4baa8e5efc9',
    '6af46db04ebae2ae1ad69ca1ffdc4758227fe8bfb3577348ae7a1fb05af4bf12',
    '420786b9bf1e751fa7c97f16b1913926574b01654131ce60246f106131edaf50',
    '7c2949c148e49dcd2e89ae0d77e82634872c682ae24e930c455914120a3ad5a2',
    '9cfa14a6c81e70defa337741d5169a3b9ea06d488291400c3de1fb9872772a5c',
  ),
  'dialogues.py': (
    'fc08fb7675905aa0899e4e7ab8c29f1491b63e60fe4c2f2900356435e9ace047',
    'eecdfe6136cd5a0cadeccd74332362f441d91ec8b1f36249898256cfc79f78df',
    '1b57f232ab94cf7ff2834d9c3168cb5760c6db3d9005bedf9a5b8008ee17532a',
    '5f8bd3a2b48118badf852934623af5d3c38db706a0a5758d0fc5f4a9e0a32801',
    '4dd97954e7b5843c44c483965762c3c8d95b2304cf3cadd2b7e9b0ac53f8dec0',
  ),
  'laws.py': (
    '67c11e98dc2c0aac0a6e084bade7efca0e870ee605ebe8a9514256f44d451075',
    'c59f9227f7504a2a71615d561de2d1e2f7dbf0bdffd241982c0cd404b585de45',
    '2670968f0ae79707cbd1fcb50054a6c48c8581e3fca7ea95b77e80cd0071d264',
    '8e99c85e45755cd027564e7f5396b0b66ed63df779540ccdc96c259d6b63535b',
  ),
  'poems.py': (
    '2c8fd4ba40d14a0b9dcd9aa219006d37e9caaab8935b287344a515459134cc4b',
    '81135c314c7b7fb8fe189e8fe446f29d292ed245bced50811c5641cd209c04fc',
    'ac433cec4318e88f6211b7a9c99d8132e1167b93fabf8906f9ac4cb1731c36d4',
    '3fa679da8b2c71be2f6ef42af2b3f88b4eb9e147cbb5c9e03ca355a1d25fc53a',
  ),
  'prose.py': (
    '8309e047866b518a7d0447631adb0829152bac13fcb5a073b5db58c2735dcfa0',
    '78022aa062a35f36d20f1622294599e61acc52fada004ab32556b7fa9694acdf',
    'be59b0609e8a87b305cfb25f610d827bddc250024f88079b0d61c209144e6c84',
    '17fa539a0b5cf929918ce1ddf929582be9fd6661e3772c0f49269cc62c85b64a',
  ),
  'zh_en.py': (
    '028ffcffefa16a05dbde8da2f8425f22b3a81e362467f77cfc85c1419fc80c08',
    '17df274543e9c7094004e86d69aa20fbc7730cd81433bc64c614e1b930faef17',
    'c4db14ebba0ef59513c71b2349bda743311ff94702c8fd60a2ffe84fc0098049',
    'cbe902724879b0e9299c6e4fbda0237ab3977b746b53738457d644057697106d',
  ),
  'datasets/zh_corpora/sources.py': (
    '68bb9c91b8f1e45faec2f51bbe25424a660229fec924ea6223d4a8fcef8efcc4',
    '5237115da134884aba7d15b62682f8f961b1c9a5811661a22979f705a08804dd',
    'a97a5921c988b42d968675a79d93bb3c02a1131d13e4c309bbaf277278e053fc',
    '14a7132dbda8b8d129e8f0debef691b45565823069eb0c1973ef6f3d0a26921c',
  ),
  'datasets/zh_corpora/upstream.py': (
    'ab2876fa95999be9f44c5e2518c41611c3cf234a9e8a78b207a6223beca37925',
    'eccd087b67eb583674e792e64efb1280bdd0a47b54e7b3371fb36752d82ae5a8',
    '3fa34ad2606afd71f02edb0bb0e8a6d5deff2c6a92ed0a3d49d1c104cbddef0b',
  ),
  'datasets/zh_corpora/zh_corpora.py': (
    '3ebf3d7c9e8f46f975fa4bf5b74af041eb048a3f3a16daff6bf545b9bf0d573d',
    'dd411b92f8bb0c49d11a3b3cc70657e5abdd7b1928cbe1c29882a0bb8c75a6cd',
    'bb6948a5a8dac2d825cb7c5fde6a42f498b9664dee272fac595764d34b471a64',
    '64bfc0b31f3b7c97eaaacac31645760289a8a0865b6400f71b9416059261d94e',
  ),
  'codes.py': (
    '9f37d90dea9b76cd9bbf4a9f70fcfa2627c9148e82e59f923d68cf657bdf8b86',
    '78ce02a1ad631cc1eecabb92aea976be7f9de46879164f99f3c86a9eaafb3611',
  ),
  'datasets/zh_corpora/corpus.py': (
    '0a3f2b8a6fd2c3a447cf3e319cfad64545979a82f6af2d65c5f68cb319991454',
    'b4b0b9f9673130dc510f7848395d6042b27d6f628f279aefcfe065cdc94c68cd',
  ),
}


def is_equal(before: str, now: str) -> bool:
  """Whether two versions of a file, given by SHA-256, make equal documents."""
  return before == now or any(
    {before, now} <= {*versions} for versions in EQUAL.values()
  )
