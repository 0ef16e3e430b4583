"""Inputs that are kept: under a budget, by whole rows, the same bits from memory and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import GROUP_ROWS, InputCache
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.byte_sizes import parse_size, size_text
from attempt_cli.errors import AttemptError


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
    """What is read through the cache is what is read without one."""
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
    """A resumed training starts with an empty cache and must go on with the same numbers."""
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


def test_files_serve_later_trainings(llama: FrozenBackbone, tmp_path: Path) -> None:
    some = rows(20)
    use(llama, InputCache(1 << 20, folder=tmp_path), some)
    assert_same(llama, some)
    files = sorted(tmp_path.glob("*.kv"))
    assert files
    assert not list(tmp_path.glob("*.partial"))
    files[0].write_bytes(b"cut short")  # computed again
    cache = InputCache(1 << 20, folder=tmp_path)
    calls = []
    read = llama._read_group  # type: ignore[attr-defined]
    llama._read_group = lambda group: calls.append(group) or read(group)  # type: ignore[attr-defined]
    try:
        use(llama, cache, some)
        past = llama.read(some)
    finally:
        del llama._read_group  # type: ignore[attr-defined]
    assert past is not None
    assert len(calls) == 1
    assert_same(llama, some)


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
