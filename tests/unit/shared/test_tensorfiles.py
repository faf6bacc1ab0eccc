"""Headers from strangers: what fits is read, everything else is refused before it is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shared.tensorfiles import (
    MAX_HEADER_BYTES,
    TensorFileError,
    check_file,
    check_finite,
    max_bytes,
    model_tensors,
    moments_of,
    read_header,
    read_tensors,
    write_tensors,
)

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(3, dtype=np.uint16),
    "c": np.arange(2, dtype=np.int64),
}
FORMS = {"a": ("F32", (2, 3)), "b": ("U16", (3,)), "c": ("I64", (2,))}


def file_of(path: Path, header: object, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, *, dtype: str = "F32", shape: object = None) -> dict[str, object]:
    sizes = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": sizes, "data_offsets": [begin, end]}


def test_what_is_written_is_what_the_reference_library_reads(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    read = load_file(tmp_path / "t.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(np.array_equal(read[name], TENSORS[name]) for name in TENSORS)
    assert list(tmp_path.iterdir()) == [tmp_path / "t.safetensors"]


def test_what_the_reference_library_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "t.safetensors", metadata={"format": "np"})
    check_file(tmp_path / "t.safetensors", FORMS)
    check_finite(tmp_path / "t.safetensors")
    read = read_tensors(tmp_path / "t.safetensors")
    assert all(np.array_equal(read[name], TENSORS[name]) for name in TENSORS)


def test_read_tensors_cannot_be_written_to(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)
    with pytest.raises(ValueError, match="read-only"):
        read_tensors(tmp_path / "t.safetensors")["a"][0] = 1


def test_empty_and_scalar_tensors_survive(tmp_path: Path) -> None:
    tensors = {"none": np.zeros((0, 3), np.float32), "one": np.float32(7).reshape(())}
    write_tensors(tmp_path / "t.safetensors", tensors)
    read = read_tensors(tmp_path / "t.safetensors")
    assert read["none"].shape == (0, 3)
    assert read["one"][()] == 7


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        ({"a": entry(0, 8)}, b"\0" * 12, "20 bytes|bytes, expected"),
        ({"a": entry(0, 8)}, b"\0" * 4, "expected"),
        ({"a": entry(4, 8)}, b"\0" * 8, "no gaps"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12, "no overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8, "no overlaps"),
        ({"a": entry(8, 0)}, b"", "expected|no list"),
        ({"a": entry(0, 8, shape=[3])}, b"\0" * 8, "expected 12"),
        ({"a": entry(0, 8, shape=[-2])}, b"\0" * 8, "no list of sizes"),
        ({"a": entry(0, 8, shape=[True, 2])}, b"\0" * 8, "no list of sizes"),
        ({"a": entry(0, 8, shape=[2.0])}, b"\0" * 8, "no list of sizes"),
        ({"a": entry(0, 8, shape=[1] * 9)}, b"\0" * 8, "no list of sizes"),
        ({"a": entry(0, 8, shape=[2**60, 0])}, b"\0" * 8, "no list of sizes"),
        ({"a": entry(0, 8, dtype="F16")}, b"\0" * 8, "dtype"),
        ({"a": {**entry(0, 8), "more": 1}}, b"\0" * 8, "exactly"),
        ({"a": [0, 8]}, b"\0" * 8, "exactly"),
        ({"__metadata__": {"x": 1}}, b"", "map of strings"),
        ({"__metadata__": []}, b"", "map of strings"),
        (b'{"a":{},"a":{}}', b"", "twice"),
        (b'{"__metadata__":{"x":"1","x":"2"}}', b"", "twice"),
        (b'{"a":NaN}', b"", "no JSON number"),
        (b"[]", b"", "no JSON object"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", b"", "not valid JSON"),
        (b"", b"", "not valid JSON"),
    ],
)
def test_damaged_headers_are_refused(
    tmp_path: Path, header: object, data: bytes, match: str
) -> None:
    with pytest.raises(TensorFileError, match=match):
        read_header(file_of(tmp_path / "t", header, data))


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 100])
def test_a_header_longer_than_its_limit_or_its_file_is_not_read(
    tmp_path: Path, length: int
) -> None:
    with pytest.raises(TensorFileError, match="header of"):
        read_header(file_of(tmp_path / "t", {}, b"", length=length))


@pytest.mark.parametrize("content", [b"", b"\0" * 7])
def test_a_file_too_short_for_a_length_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TensorFileError, match="header of"):
        read_header(tmp_path / "t")


@pytest.mark.parametrize(
    ("forms", "match"),
    [
        ({**FORMS, "d": ("F32", (1,))}, "'d' is missing"),
        ({"a": FORMS["a"], "b": FORMS["b"]}, "'c' is not expected"),
        ({**FORMS, "a": ("F32", (3, 2))}, "tensor a is"),
        ({**FORMS, "b": ("U32", (3,))}, "tensor b is"),
    ],
)
def test_other_tensors_than_expected_are_named(
    tmp_path: Path, forms: dict[str, tuple[str, tuple[int, ...]]], match: str
) -> None:
    write_tensors(tmp_path / "t", TENSORS)
    with pytest.raises(TensorFileError, match=match):
        check_file(tmp_path / "t", forms)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_mutated_header_is_refused_or_means_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    write_tensors(path, TENSORS)
    before = read_header(path)
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, end - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
        byte = data.draw(st.sampled_from(b'{}[]",:0123456789 aF\xff') | st.integers(0, 255))
        if kind == "set":
            content[position] = byte
        elif kind == "insert":
            content.insert(position, byte)
        else:
            del content[position]
    path.write_bytes(content)
    try:
        check_file(path, FORMS)
    except TensorFileError:
        return
    assert {name: read.form for name, read in read_header(path).items()} == FORMS
    start = 8 + int.from_bytes(content[:8], "little")
    shift = start - min(read.begin for read in before.values())
    for name, read in read_header(path).items():
        assert (read.begin, read.end) == (before[name].begin + shift, before[name].end + shift)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    damaged = np.zeros(5_000_000, dtype=np.float32)
    damaged[-1] = value
    write_tensors(tmp_path / "t", {**TENSORS, "damaged": damaged})
    with pytest.raises(TensorFileError, match="tensor damaged"):
        check_finite(tmp_path / "t")


def test_an_unknown_dtype_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match="float64"):
        write_tensors(tmp_path / "t", {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", TENSORS)
    before = (tmp_path / "t").read_bytes()
    program = (
        "import resource, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from shared.tensorfiles import write_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write_tensors(Path(sys.argv[1]), {'a': np.zeros(10_000, np.float32)})\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "t")], check=False, timeout=30
    )
    assert child.returncode != 0
    assert os.strerror(child.returncode) == "File too large"
    assert (tmp_path / "t").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "t"]


def test_moments_are_two_for_each_weight(make) -> None:
    shape = make.spec().shape
    weights, moments = model_tensors(shape), moments_of(model_tensors(shape))
    assert len(moments) == 2 * len(weights)
    for name, form in weights.items():
        assert moments[f"exp_avg.{name}"] == moments[f"exp_avg_sq.{name}"] == form


def test_max_bytes_bounds_a_file_with_the_longest_header(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", TENSORS)
    data_bytes = sum(tensor.nbytes for tensor in TENSORS.values())
    assert (tmp_path / "t").stat().st_size <= max_bytes(FORMS)
    assert max_bytes(FORMS) == 8 + MAX_HEADER_BYTES + data_bytes
