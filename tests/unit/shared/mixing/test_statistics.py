"""Statistics of a domain: exact to add and to take away, and refused where they cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from shared.mixing.evidence import StatisticsError, TokenCounts
from shared.mixing.statistics import GRID, ExpertStatistics
from shared.tensorfiles import TensorFileError

VOCAB, HIDDEN, LAYERS = 6, 4, 2
SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_layers": LAYERS}
COUNTS = TokenCounts(2, np.asarray([0, 1, 2, 0, 0, 1]))


def products_of(rng_seed: int, positions: int) -> np.ndarray:
    """fp64 [LAYERS + 1, HIDDEN + 1, HIDDEN + 1] of random states on the grid."""
    rng = np.random.default_rng(rng_seed)
    states = np.rint(rng.normal(scale=3.0, size=(LAYERS + 1, positions, HIDDEN)) / GRID) * GRID
    with_one = np.concatenate([states, np.ones((LAYERS + 1, positions, 1))], axis=2)
    return with_one.transpose(0, 2, 1) @ with_one


def statistics_of(rng_seed: int, positions: int = 5) -> ExpertStatistics:
    rng = np.random.default_rng(rng_seed)
    counts = TokenCounts(9, rng.integers(0, 10, VOCAB), rng.integers(0, 10, 4))
    return ExpertStatistics(counts, products_of(rng_seed, positions))


def content(path: Path, statistics: ExpertStatistics) -> bytes:
    statistics.write(path)
    return path.read_bytes()


seeds = st.integers(0, 2**32 - 1)


@given(one=seeds, others=st.lists(seeds, min_size=1, max_size=4), positions=st.integers(0, 50))
def test_what_is_added_and_taken_away_again_leaves_the_same_bytes(
    one, others, positions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "statistics.safetensors"
    first = statistics_of(one, positions)
    total = first
    for other in others:
        total = total + statistics_of(other, positions + 3)
    for other in reversed(others):
        total = total - statistics_of(other, positions + 3)
    assert content(path, total) == content(path, first)


@given(parts=st.lists(seeds, min_size=2, max_size=5, unique=True))
def test_the_order_of_adding_does_not_matter(parts) -> None:
    forth, back = statistics_of(parts[0]), statistics_of(parts[-1])
    for part in parts[1:]:
        forth = forth + statistics_of(part)
    for part in parts[-2::-1]:
        back = back + statistics_of(part)
    assert forth.hidden is not None
    assert back.hidden is not None
    assert forth.hidden.tobytes() == back.hidden.tobytes()
    assert forth.num_positions == 5 * len(parts)


def test_written_statistics_read_back(tmp_path: Path) -> None:
    path = tmp_path / "cooking.safetensors"
    written = statistics_of(7)
    written.write(path)
    read = ExpertStatistics.read(path, **SIZES)
    assert read.tokens.windows == 9
    assert np.array_equal(read.tokens.counts, written.tokens.counts)
    assert np.array_equal(read.tokens.pairs, written.tokens.pairs)
    assert read.hidden is not None
    assert np.array_equal(read.hidden, written.hidden)
    assert list(tmp_path.iterdir()) == [path]


def test_statistics_without_hidden_states_are_statistics(tmp_path: Path) -> None:
    path = tmp_path / "cooking.safetensors"
    ExpertStatistics(COUNTS).write(path)
    read = ExpertStatistics.read(path, **SIZES)
    assert read.hidden is None
    assert read.num_positions == 0
    assert (read + read).tokens.windows == 4


def test_hidden_states_are_left_where_nobody_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "cooking.safetensors"
    statistics_of(7).write(path)
    assert ExpertStatistics.read(path, vocab_size=VOCAB).hidden is None


def test_equal_statistics_are_equal_bytes_whatever_the_sign_of_zero(tmp_path: Path) -> None:
    zeros = np.zeros((LAYERS + 1, HIDDEN + 1, HIDDEN + 1))
    positive = content(tmp_path / "a", ExpertStatistics(COUNTS, zeros))
    assert content(tmp_path / "b", ExpertStatistics(COUNTS, -zeros)) == positive


def test_statistics_of_other_models_do_not_add_up() -> None:
    with pytest.raises(StatisticsError, match="hidden: None and"):
        ExpertStatistics(COUNTS) + statistics_of(1)
    with pytest.raises(StatisticsError, match=r"counts: of \[2, 6\]"):
        ExpertStatistics(COUNTS) + ExpertStatistics(TokenCounts(1, np.asarray([0, 1])))


def test_what_was_not_added_cannot_be_taken_away() -> None:
    few, many = products_of(1, 2), products_of(1, 40)
    with pytest.raises(StatisticsError, match="more was taken away than had been added"):
        ExpertStatistics(COUNTS, few) - ExpertStatistics(COUNTS, many)


def spoiled(where: tuple[int, ...], value: float) -> np.ndarray:
    products = products_of(3, 5)
    products[where] = value
    return products


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (spoiled((1, 0, 1), np.nan), "NaN or infinite in the products of layer 0"),
        (spoiled((0, 0, 1), np.inf), "NaN or infinite in the products of layer -1"),
        (spoiled((2, 1, 1), 1e-9), "in layer 1 is no multiple"),
        (spoiled((2, 1, 1), 2.0**30), "use fewer positions"),
        (spoiled((2, 0, 1), 12345.0), "no sum of squares"),
        (spoiled((2, -1, -1), 6.0), "positions"),
        (spoiled((2, 1, 1), -1.0), "no sum of squares"),
        (products_of(3, 5).astype(np.float32), "hidden: float32"),
        (products_of(3, 5)[:, 1:], "hidden: float64"),
    ],
)
def test_impossible_products_are_refused(hidden, words) -> None:
    with pytest.raises(StatisticsError, match=words):
        ExpertStatistics(COUNTS, hidden)


def tensors(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    whole = {
        "token_windows": COUNTS.counts,
        "windows": np.asarray([2]),
        "hidden_products": products_of(3, 5),
        **changes,
    }
    return {name: tensor for name, tensor in whole.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"windows": None}, r"bad.safetensors: tensor 'windows' is missing"),
        ({"more": np.asarray([1])}, r"bad.safetensors: tensor 'more' is not expected"),
        ({"token_windows": np.zeros(7, dtype=np.int64)}, r"tensor token_windows is \('I64', \(7,"),
        ({"token_windows": np.zeros(6, dtype=np.float32)}, r"token_windows is \('F32'"),
        ({"hidden_products": np.zeros((3, 4, 4))}, r"hidden_products is \('F64', \(3, 4, 4"),
        ({"hidden_products": spoiled((0, 0, 0), np.nan)}, r"bad.safetensors: hidden: NaN"),
        ({"windows": np.asarray([1])}, r"bad.safetensors: counts: 2 windows with number 2"),
        ({"pair_windows": np.zeros((2, 2), dtype=np.int64)}, r"pairs: int64 \(2, 2\), expected"),
        ({"pair_windows": np.zeros(2, dtype=np.float32)}, r"pair_windows is \('F32'"),
        ({"pair_windows": np.asarray([0, 3])}, r"bad.safetensors: pairs: 3 windows with number 1"),
        ({"windows": np.asarray([-1])}, r"bad.safetensors: windows: -1"),
    ],
)
def test_files_of_something_else_are_refused_by_name(tmp_path: Path, changes, words) -> None:
    path = tmp_path / "bad.safetensors"
    save_file(tensors(**changes), path)
    with pytest.raises(StatisticsError, match=words):
        ExpertStatistics.read(path, **SIZES)


def test_a_file_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    entry = {"dtype": "I64", "shape": [VOCAB], "data_offsets": [0, 8 * VOCAB]}
    header = json.dumps({"token_windows": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(TensorFileError, match="expected"):
        ExpertStatistics.read(path, **SIZES)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # which one depends on the system
        statistics_of(1).write(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
