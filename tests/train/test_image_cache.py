"""Decoded images are kept up to a number of bytes, whatever the number of processes."""

from ovsdino.train.image_cache import ImageCache, share_of_machine


def test_what_was_not_used_longest_makes_room():
    made = []
    cache = ImageCache(10, len)

    def get(key, size):
        return cache.get(key, lambda: made.append(key) or bytes(size))

    for key, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        assert len(get(key, size)) == size
    assert made == ["a", "b", "c"] and (len(cache), cache.bytes) == (2, 8)  # 12 bytes are too many: b went
    get("a", 4)
    get("b", 4)
    assert made == ["a", "b", "c", "b"] and cache.bytes == 8
    get("d", 99)
    assert (len(cache), cache.bytes) == (1, 99)  # one is kept whatever its size
    get("e", 1)
    assert (len(cache), cache.bytes) == (1, 1)


def test_all_processes_of_a_machine_share_the_bytes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert share_of_machine(512, 0) == 512_000_000 and share_of_machine(512, 8) == 64_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert share_of_machine(512, 0) == 64_000_000 and share_of_machine(512, 8) == 8_000_000
