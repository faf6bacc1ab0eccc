"""The cache of log-likelihoods: computed once, never trusted when damaged."""

import numpy as np
import pytest

from coordinator.scoring.likelihood_cache import CacheKey, LikelihoodCache

KEY = CacheKey(checkpoint="a" * 64, ffn_width=64, shard="b" * 64, context_length=32)
LABELS = -np.linspace(0.0, 9.0, 50, dtype=np.float32)


@pytest.fixture
def cache(tmp_path):
    return LikelihoodCache(tmp_path / "likelihoods")


def test_an_entry_is_the_same_for_a_new_process(cache, tmp_path):
    assert cache.find(KEY, num_labels=50) is None
    cache.put(KEY, LABELS, num_labels=50)
    again = LikelihoodCache(tmp_path / "likelihoods").find(KEY, num_labels=50)
    assert again.tobytes() == cache.find(KEY, num_labels=50).tobytes() == LABELS.tobytes()


def test_an_entry_is_memory_mapped_and_read_only(cache):
    cache.put(KEY, LABELS, num_labels=50)
    entry = cache.find(KEY, num_labels=50)
    assert isinstance(entry, np.memmap)
    assert not entry.flags.writeable


@pytest.mark.parametrize(
    "other",
    [
        CacheKey(checkpoint="c" * 64, ffn_width=64, shard="b" * 64, context_length=32),
        CacheKey(checkpoint="a" * 64, ffn_width=32, shard="b" * 64, context_length=32),
        CacheKey(checkpoint="a" * 64, ffn_width=64, shard="c" * 64, context_length=32),
        CacheKey(checkpoint="a" * 64, ffn_width=64, shard="b" * 64, context_length=16),
    ],
)
def test_every_part_of_the_key_counts(cache, other):
    cache.put(KEY, LABELS, num_labels=50)
    assert cache.find(other, num_labels=50) is None


def truncate(array, marker):
    array.write_bytes(array.read_bytes()[:-4])


def flip_a_bit(array, marker):
    data = bytearray(array.read_bytes())
    data[-1] ^= 1
    array.write_bytes(data)


def lose_the_marker(array, marker):
    marker.unlink()


def lose_the_array(array, marker):
    array.unlink()


def empty_both(array, marker):
    array.write_bytes(b"")
    marker.write_text("")


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_bit, lose_the_marker, lose_the_array, empty_both]
)
def test_a_damaged_entry_is_not_used_and_can_be_stored_again(cache, tmp_path, damage):
    cache.put(KEY, LABELS, num_labels=50)
    folder = tmp_path / "likelihoods"
    damage(folder / f"{KEY.stem}.npy", folder / f"{KEY.stem}.sha256")
    fresh = LikelihoodCache(folder)
    assert fresh.find(KEY, num_labels=50) is None
    fresh.put(KEY, LABELS, num_labels=50)
    assert fresh.find(KEY, num_labels=50).tobytes() == LABELS.tobytes()


def test_an_entry_of_another_length_is_not_used(cache):
    cache.put(KEY, LABELS, num_labels=50)
    assert cache.find(KEY, num_labels=40) is None


def test_a_forgotten_checkpoint_leaves_no_entry_and_the_others_stay(cache, tmp_path):
    other = CacheKey(checkpoint="c" * 64, ffn_width=64, shard="b" * 64, context_length=32)
    cache.put(KEY, LABELS, num_labels=50)
    cache.put(other, LABELS, num_labels=50)
    cache.forget("a" * 64)
    assert cache.find(KEY, num_labels=50) is None
    assert cache.find(other, num_labels=50) is not None
    assert len(list((tmp_path / "likelihoods").iterdir())) == 2


def test_nothing_temporary_is_left(cache, tmp_path):
    cache.put(KEY, LABELS, num_labels=50)
    suffixes = {path.suffix for path in (tmp_path / "likelihoods").iterdir()}
    assert suffixes == {".npy", ".sha256"}


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 0.5])
def test_impossible_log_likelihoods_are_refused(cache, bad):
    labels = LABELS.copy()
    labels[7] = bad
    with pytest.raises(ValueError, match="label 7"):
        cache.put(KEY, labels, num_labels=50)
    assert cache.find(KEY, num_labels=50) is None


def test_a_wrong_dtype_is_refused_by_name(cache):
    with pytest.raises(ValueError, match="float64"):
        cache.put(KEY, LABELS.astype(np.float64), num_labels=50)
