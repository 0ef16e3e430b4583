"""Inputs that are kept: under a budget, by whole rows, the same bits from memory and from files."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.input_cache import GROUP_ROWS, InputCache
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.byte_sizes import parse_size, size_text
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptMixture
from attempt_cli.prompted import PromptedModel
from attempt_cli.session import Session
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.run import layers_for
from tests.models import unigram_tokenizer


@pytest.fixture
def llama(backbones: dict[str, FrozenBackbone], monkeypatch: pytest.MonkeyPatch) -> FrozenBackbone:
    monkeypatch.setattr(backbones["llama"], "input_cache", None)
    return backbones["llama"]


def rows(count: int, seed: int = 0) -> list[EncodedRow]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [EncodedRow(torch.randint(5, 40, (n,), generator=generator).tolist(), [7]) for n in lengths]


def use(backbone: FrozenBackbone, cache: InputCache, *sets: list[EncodedRow]) -> None:
    backbone.input_cache = cache
    cache.plan(sets, backbone.cache_bytes_per_token)


def assert_same(backbone: FrozenBackbone, some: list[EncodedRow]) -> None:
    """Checks that reading through the cache gives the same as reading without one."""
    past = backbone.read(some)
    cache, backbone.input_cache = backbone.input_cache, None
    plain = backbone.read(some)
    backbone.input_cache = cache
    assert past is not None
    assert plain is not None
    assert past.lengths.tolist() == plain.lengths.tolist() == [len(row.input_ids) for row in some]
    pairs = [*zip(past.keys, plain.keys, strict=True), *zip(past.values, plain.values, strict=True)]
    for ours, theirs in pairs:  # of each layer
        for place, row in enumerate(some):
            length = len(row.input_ids)
            torch.testing.assert_close(ours[place, :, :length], theirs[place, :, :length], rtol=1e-4, atol=1e-4)


def test_rows_are_computed_once(llama: FrozenBackbone) -> None:
    some = rows(40)
    cache = InputCache(1 << 20)
    use(llama, cache, some)
    for start in (0, 7, 13):
        assert_same(llama, some[start::3])
    assert_same(llama, some)
    assert cache.misses == len({tuple(row.input_ids) for row in some})
    assert 0 < cache.bytes <= cache.budget


def test_what_does_not_fit_is_computed_each_time(llama: FrozenBackbone) -> None:
    some = rows(60)
    cache = InputCache(20 * 8 * llama.cache_bytes_per_token)
    use(llama, cache, some)
    for _ in range(2):
        assert_same(llama, some)
    assert 0 < cache.misses < 60
    assert cache.bytes <= cache.budget


def test_rows_of_an_earlier_training_make_room(llama: FrozenBackbone) -> None:
    first, second = rows(GROUP_ROWS, 1), rows(GROUP_ROWS, 2)
    budget = GROUP_ROWS * 12 * llama.cache_bytes_per_token
    cache = InputCache(budget)
    use(llama, cache, first)
    assert_same(llama, first)
    use(llama, cache, second)
    assert_same(llama, second)
    assert cache.bytes <= budget
    assert cache.group_of(first[0].input_ids) is None


def test_two_trainings_on_the_same_rows_share_them(llama: FrozenBackbone) -> None:
    some = rows(30)
    cache = InputCache(1 << 20)
    use(llama, cache, some)
    assert_same(llama, some)
    computed = cache.misses
    use(llama, cache, list(reversed(some)))
    assert_same(llama, some)
    assert cache.misses == computed


def test_the_bits_do_not_hang_on_what_was_read_before(llama: FrozenBackbone) -> None:
    """A resumed training starts with an empty cache and must continue with the same numbers."""
    some = rows(40)
    use(llama, InputCache(1 << 20), some)
    whole = llama.read(some[:5])
    use(llama, InputCache(1 << 20), some)
    llama.read(some[20:])
    again = llama.read(some[:5])
    assert whole is not None
    assert again is not None
    for ours, theirs in ((whole.keys, again.keys), (whole.values, again.values)):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def computed_again(backbone: FrozenBackbone, some: list[EncodedRow], folder: Path, made_by: str = "") -> int:
    """How many groups of rows a training computes that finds the folder as it is now; checks what it reads."""
    calls = []
    read = backbone._read_group  # type: ignore[attr-defined]
    backbone._read_group = lambda group: calls.append(group) or read(group)  # type: ignore[attr-defined]
    try:
        use(backbone, InputCache(1 << 20, folder=folder, made_by=made_by), some)
        backbone.read(some)
    finally:
        del backbone._read_group  # type: ignore[attr-defined]
    assert_same(backbone, some)
    return len(calls)


def test_files_serve_later_trainings(llama: FrozenBackbone, tmp_path: Path) -> None:
    some = rows(20)
    assert computed_again(llama, some, tmp_path) == len(list(tmp_path.iterdir())) == 2
    assert {file.suffix for file in tmp_path.iterdir()} == {".kv"}
    assert computed_again(llama, some, tmp_path) == 0


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def zeros_at_the_end(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-500] + bytes(500))


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def another_type(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))


def a_neighbour_s(file: Path) -> None:
    (other,) = (path for path in file.parent.iterdir() if path != file)
    file.write_bytes(other.read_bytes())


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    "damage",
    [zeros, zeros_at_the_end, cut_short, empty, another_type, a_neighbour_s, a_pipe],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_is_computed_again(
    llama: FrozenBackbone, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    some = rows(20)
    computed_again(llama, some, tmp_path)
    damage(min(tmp_path.iterdir()))
    assert computed_again(llama, some, tmp_path) == 1
    assert computed_again(llama, some, tmp_path) == 0


def test_a_folder_serves_several_backbones_and_dtypes(llama: FrozenBackbone, tmp_path: Path) -> None:
    # the rows' tokens are the same for all backbones of a tokenizer; their keys and values are not
    some = rows(20)
    computed_again(llama, some, tmp_path, "one torch.float32")
    assert computed_again(llama, some, tmp_path, "one torch.bfloat16") == 2
    assert computed_again(llama, some, tmp_path, "another torch.float32") == 2
    assert len(list(tmp_path.iterdir())) == 6


def test_a_session_s_folder_is_told_what_made_its_files(folders: dict[str, Path], tmp_path: Path) -> None:
    made = set()
    for dtype in ("float32", "bfloat16"):
        session = Session(
            registry=tmp_path / "registry",
            backbone=str(folders["llama"]),
            device="cpu",
            dtype=dtype,
            input_cache_dir=tmp_path / "inputs",
        )
        cache = session.load_backbone().input_cache
        assert cache is not None
        made.add(cache.made_by)
        assert session.load_backbone().fingerprint in cache.made_by
    assert len(made) == 2


def test_a_full_disk_or_memory_ends_the_keeping_not_the_reading(llama: FrozenBackbone, tmp_path: Path) -> None:
    some = rows(20)
    blocked = tmp_path / "a-file"
    blocked.write_text("no folder")
    cache = InputCache(1 << 20, folder=blocked)
    use(llama, cache, some)
    assert_same(llama, some)
    assert cache.failure is not None
    assert cache.bytes == 0


def test_a_budget_below_one_row_is_refused(llama: FrozenBackbone) -> None:
    with pytest.raises(
        AttemptError, match=r"the input cache of 100 B does not hold one row \(.* for 2 tokens\)"
    ) as failure:
        use(llama, InputCache(100), [EncodedRow([5, 6], [7])])
    assert "--input-cache" in (failure.value.hint or "")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4GiB", 4 << 30), ("500 MB", 500 << 20), ("1.5g", 3 << 29), ("12", 12), ("2kib", 2048)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_what_is_no_size() -> None:
    for text in ("much", "-1GiB", "4 apples", ""):
        with pytest.raises(AttemptError, match="is not a size"):
            parse_size(text)
    assert [size_text(n) for n in (3, 2048, 5 << 20, 3 << 29)] == ["3 B", "2 KiB", "5 MiB", "1.5 GiB"]


def test_a_folder_of_kept_inputs_stays_within_its_budget(llama: FrozenBackbone, tmp_path: Path) -> None:
    """What other trainings and killed processes have left is collected; what was read last goes last."""
    stale, fresh = tmp_path / "a.kv.1.partial", tmp_path / "b.kv.2.partial"
    for file in (stale, fresh):
        file.write_bytes(b"half")
    os.utime(stale, (1, 1))
    budget = 0
    for seed in range(4):
        cache = InputCache(budget or 1 << 20, folder=tmp_path, made_by="one")
        use(llama, cache, rows(20, seed))
        assert_same(llama, rows(20, seed))
        budget = budget or 2 * cache.bytes + cache.bytes // 2  # for two trainings and a half
    first = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.kv")}
    total = sum(file.stat().st_size for file in tmp_path.glob("*.kv"))
    assert total <= budget * 1.1  # a file is a little larger than its tensor
    assert (stale.exists(), fresh.exists()) == (False, True)
    again = InputCache(budget, folder=tmp_path, made_by="one")
    use(llama, again, rows(20, 3))
    assert_same(llama, rows(20, 3))
    assert {file.name for file in tmp_path.glob("*.kv")} == set(first)  # the newest training's files were there
    lost = InputCache(budget, folder=tmp_path, made_by="one")
    use(llama, lost, rows(20, 0))
    assert_same(llama, rows(20, 0))  # computed again


# --- memory


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


def test_reading_keeps_two_copies_at_most_and_one_of_few_positions_at_once() -> None:
    config = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 48}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=200, pad_token_id=0, **config))
    backbone = DecoderOnlyBackbone(model, unigram_tokenizer(), name="own", source="random")
    backbone.use_own_attention(True)
    rows = [EncodedRow([5] * 40, []) for _ in range(16)]
    size, keys = 16 * 40 * backbone.cache_bytes_per_token, []
    for at_once, copies in ((8192, 2.5), (160, 1.5)):  # it was more than 4 both times
        backbone.read_at_once = at_once
        with Live() as live:
            keys.append(backbone.read(rows).keys[47])
        assert size < live.most < copies * size
    torch.testing.assert_close(*keys)


def test_a_training_reads_as_many_positions_at_once_as_it_computes(llama: FrozenBackbone) -> None:
    model = PromptedModel(llama, PromptMixture(torch.zeros(1, 2, llama.width)), placement="after")
    with layers_for(model, TrainingConfig(max_tokens=77)):
        assert llama.read_at_once == 77
    assert llama.read_at_once == 8192
