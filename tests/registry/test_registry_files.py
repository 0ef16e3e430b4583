"""Tensors from files that users bring."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from attempt_registry import RegistryError
from attempt_registry.tensor_files import read_tensor


def write_safetensors(path: Path, dtype: str, shape: list[int], data: bytes) -> Path:
    """The format by hand: eight bytes of header length, the header, the data."""
    header = json.dumps({"prompt": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_floats_of_any_width(tmp_path: Path, dtype: type, form: str) -> None:
    tensor = np.array([[1, -2.5, 0], [0.125, 1024, 6]], dtype)
    path = tmp_path / f"x.{form}"
    np.save(path, tensor) if form == "npy" else save_file({"p": tensor}, path)
    np.testing.assert_array_equal(read_tensor(path), tensor.astype(np.float32))


def test_bfloat16_is_widened_by_its_bits(tmp_path: Path) -> None:
    # bfloat16 is the upper half of float32: 1.0, -2.5, 2^-133 (below the normal range), 3.140625, and infinity
    halves = [0x3F80, 0xC020, 0x0001, 0x4049, 0x7F80, 0x0000]
    path = write_safetensors(tmp_path / "x.safetensors", "BF16", [2, 3], np.array(halves, "<u2").tobytes())
    tensor = read_tensor(path)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, [[1.0, -2.5, 2.0**-133], [3.140625, np.inf, 0.0]])


@pytest.mark.parametrize(("dtype", "size"), [("I64", 8), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1)])
def test_other_numbers_are_refused(tmp_path: Path, dtype: str, size: int) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", dtype, [2, 3], bytes(6 * size))
    with pytest.raises(RegistryError, match=f"tensor 'prompt' holds {dtype}, not floating-point numbers"):
        read_tensor(path)


def test_one_of_several(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"prompt_vectors": np.ones((2, 3)), "base.weight": np.zeros(4, np.int64)}, path)
    assert read_tensor(path, "prompt_vectors").shape == (2, 3)
    with pytest.raises(RegistryError, match="holds 2 tensors") as failure:
        read_tensor(path)
    assert "Choose one with --tensor NAME: " in (failure.value.hint or "")
    assert "prompt_vectors [2, 3]" in (failure.value.hint or "")
    with pytest.raises(RegistryError, match="has no tensor 'prompt_vector'") as failure:
        read_tensor(path, "prompt_vector")
    assert (failure.value.hint or "").startswith("Did you mean prompt_vectors? It holds ")
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    with pytest.raises(RegistryError, match="holds one unnamed array"):
        read_tensor(tmp_path / "x.npy", "p")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, struct.pack("<Q", 4) + b"{{{{"])
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(RegistryError, match=r"x\.safetensors is not a complete safetensors file"):
        read_tensor(path)


def test_files_cut_short(tmp_path: Path) -> None:
    save_file({"p": np.ones((20, 30))}, tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", np.ones((20, 30)))
    for name, form in (("x.safetensors", "safetensors"), ("x.npy", r"\.npy")):
        path = tmp_path / name
        for keep in (40, 300):
            path.write_bytes(path.read_bytes()[:-keep])
            with pytest.raises(RegistryError, match=f"is not a complete {form} file"):
                read_tensor(path)


class Trap:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["p.pt", "p.pth", "p.bin", "p.ckpt", "p.pkl", "p.PT", "p.safetensors", "p.npy", "p"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_is_refused_unopened_whatever_its_name(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    with pytest.raises(RegistryError, match="is a pickle: opening one can run any program") as failure:
        read_tensor(path)
    assert "weights_only=True" in (failure.value.hint or "")
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_inside_a_npy_file_is_refused_unopened(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    with pytest.raises(RegistryError, match="is a pickle"):
        read_tensor(tmp_path / "x.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("in_dict", [True, False])
def test_the_way_to_convert_a_pickle_works(tmp_path: Path, in_dict: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "it's.pt"
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    torch.save({"prompt_vectors": tensor} if in_dict else tensor, path)
    with pytest.raises(RegistryError) as failure:
        read_tensor(path)
    _, *lines = (failure.value.hint or "").split("\n")
    assert len(lines) == 2
    exec("\n".join(line.strip() for line in lines), {})
    np.testing.assert_array_equal(read_tensor(tmp_path / "it's.safetensors"), [[0, 1, 2], [3, 4, 5]])


def adapter(folder: Path, rows: int, extra: dict[str, np.ndarray] | None = None, **config: object) -> Path:
    """A PEFT adapter's folder; returns its tensors' file."""
    tensors = {"prompt_embeddings": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)}
    save_file(tensors | (extra or {}), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("rows", [5, 10])
def test_of_an_adapter_the_prompt_alone_is_read(tmp_path: Path, rows: int) -> None:
    # one for a T5 holds a second half, for the decoder, that PEFT never trains
    path = adapter(tmp_path, rows, peft_type="PROMPT_TUNING", num_virtual_tokens=5, num_transformer_submodules=2)
    for tensor in (None, "prompt_embeddings"):
        np.testing.assert_array_equal(read_tensor(path, tensor), np.arange(15, dtype=np.float32).reshape(5, 3))


@pytest.mark.parametrize("kind", ["MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "LORA", 3, None])
def test_an_adapter_that_is_no_plain_prompt_is_refused(tmp_path: Path, kind: object) -> None:
    path = adapter(tmp_path, 5, peft_type=kind, num_virtual_tokens=5)
    with pytest.raises(RegistryError, match="which is no plain prompt"):
        read_tensor(path, "prompt_embeddings")


def test_an_adapters_table_that_numpy_saved_is_checked_alike(tmp_path: Path) -> None:
    adapter(tmp_path, 10, peft_type="PROMPT_TUNING", num_virtual_tokens=5, num_transformer_submodules=2)
    table = tmp_path / "table.npy"
    np.save(table, np.ones((10, 4), np.float32))
    assert read_tensor(table).shape == (5, 4)
    np.save(table, np.ones((7, 4), np.float32))
    with pytest.raises(RegistryError, match=r"table.npy holds 7 rows, but its adapter_config.json says"):
        read_tensor(table)
    adapter(tmp_path, 10, peft_type="MULTITASK_PROMPT_TUNING", num_virtual_tokens=10)
    with pytest.raises(RegistryError, match=r"table.npy holds a 'MULTITASK_PROMPT_TUNING' adapter"):
        read_tensor(table)


def test_an_adapter_that_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    path = adapter(tmp_path, 7, peft_type="PROMPT_TUNING", num_virtual_tokens=5)
    with pytest.raises(RegistryError, match=r"holds 7 rows, but its adapter_config\.json says num_virtual_tokens 5"):
        read_tensor(path)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(RegistryError, match=r"adapter_config\.json cannot be read"):
        read_tensor(path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(RegistryError, match=r"is a PEFT adapter without its adapter_config\.json"):
        read_tensor(path)
    factors = {"prefix_task_cols": np.ones((1, 5, 1), np.float32)}
    path = adapter(tmp_path, 5, factors, peft_type="PROMPT_TUNING", num_virtual_tokens=5)
    with pytest.raises(RegistryError, match="which is no plain prompt"):
        read_tensor(path, "prompt_embeddings")


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00\x02\x00{\n",
        b"\x93NUMPY\x01\x00\x46\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 99)}".ljust(69)
        + b"\n",
        b"\x93NUMPY\x09\x00\x02\x00{}",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 15 + b"\n",
    ],
)
def test_a_broken_npy_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(RegistryError, match=r"is not a complete \.npy file"):
        read_tensor(tmp_path / "x.npy")
