"""Where rows come from and which of them belong to a split: the literature's rule, exactly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.catalogue import load_task, task_file
from attempt_cli.data.rows import load_examples
from attempt_cli.data.splits import official_split, permutation, split_part
from attempt_cli.data.task import HubDataset, Task
from attempt_cli.errors import AttemptError

TASK = Task(
    name="toy",
    version=1,
    description="",
    input="say {text}:",
    metrics=("accuracy",),
    labels={"0": "no", "1": "yes"},
    hub=HubDataset(path="someone/toy", config="plain"),
)


def write(data_dir: Path, split: str, count: int, task: Task = TASK, **extra: list[Any]) -> Path:
    assert task.hub
    folder = data_dir / task.hub.path / str(task.hub.config)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"text": [f"{split} {n}" for n in range(count)], "label": [n % 2 for n in range(count)], **extra}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
    return folder / f"{split}.parquet"


def rows_of(task: Task, split: str, data_dir: Path, **options: Any) -> list[int]:
    return [example.row for example in load_examples(task, split, data_dir=data_dir, **options).examples]


def test_the_permutation_is_that_of_the_literature() -> None:
    # torch's generator is the Mersenne Twister, its randperm a Fisher-Yates shuffle: here from numpy's bits
    bits = numpy.random.MT19937()
    bits._legacy_seeding(42)
    by_hand = list(range(277))
    for place in range(276):
        other = place + int(bits.random_raw()) % (277 - place)
        by_hand[place], by_hand[other] = by_hand[other], by_hand[place]
    assert permutation(277) == by_hand
    assert by_hand[:5] == [207, 84, 253, 243, 190]
    assert permutation(10) == [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]
    assert sorted(permutation(1000)) == list(range(1000))


@pytest.mark.parametrize(
    ("rule", "splits", "officials"),
    [
        ("halved", {}, ("train", "validation", "validation")),
        ("held-out", {}, ("train", "train", "validation")),
        ("held-out", {"test": "test"}, ("train", "train", "test")),
        ("own", {}, ("train", "validation", "test")),
        (
            "own",
            {"validation": "validation_mismatched", "test": "validation_matched"},
            ("train", "validation_mismatched", "validation_matched"),
        ),
    ],
)
def test_which_official_split_a_split_is_cut_from(
    rule: str, splits: dict[str, str], officials: tuple[str, ...]
) -> None:
    assert tuple(official_split(rule, splits, split) for split in ("train", "validation", "test")) == officials


def test_halves_of_the_official_validation(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"split_rule": "halved"})
    write(tmp_path, "train", 4)
    write(tmp_path, "validation", 7)
    order = permutation(7)
    assert rows_of(task, "train", tmp_path) == [0, 1, 2, 3]
    assert rows_of(task, "validation", tmp_path) == order[:3]
    assert rows_of(task, "test", tmp_path) == order[3:]


def test_a_thousand_rows_of_train_are_validation(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"split_rule": "held-out"})
    write(tmp_path, "train", 2500)
    write(tmp_path, "validation", 5)
    order = permutation(2500)
    assert rows_of(task, "validation", tmp_path) == order[:1000]
    assert rows_of(task, "train", tmp_path) == order[1000:]
    assert rows_of(task, "test", tmp_path) == [0, 1, 2, 3, 4]


def test_a_small_subset_holds_out_a_tenth_and_says_so(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"split_rule": "held-out"})
    write(tmp_path, "train", 1999)
    rows = load_examples(task, "validation", data_dir=tmp_path)
    assert [example.row for example in rows.examples] == permutation(1999)[:199]
    assert "(a tenth, as there are fewer than 2,000)" in rows.origin
    assert "first 199" in rows.origin
    assert len(rows_of(task, "train", tmp_path)) == 1800
    assert len(split_part("held-out", "validation", 2000).numbers) == 1000


def test_a_limit_is_a_seeded_sample_of_the_split_in_order(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"split_rule": "held-out"})
    write(tmp_path, "train", 300)
    whole = rows_of(task, "train", tmp_path)
    some = rows_of(task, "train", tmp_path, limit=20, seed=1)
    assert some == [row for row in whole if row in set(some)]
    assert len(some) == 20
    assert some == rows_of(task, "train", tmp_path, limit=20, seed=1)
    assert some != rows_of(task, "train", tmp_path, limit=20, seed=2)
    assert rows_of(task, "train", tmp_path, limit=10**6) == whole
    assert set(some).isdisjoint(rows_of(task, "validation", tmp_path))
    assert "20 of these by seed 1" in load_examples(task, "train", data_dir=tmp_path, limit=20, seed=1).origin
    with pytest.raises(AttemptError, match="limit of 0"):
        load_examples(task, "train", data_dir=tmp_path, limit=0)


def test_the_digest_is_of_what_the_model_sees(tmp_path: Path) -> None:
    write(tmp_path / "a", "train", 3)
    write(tmp_path / "b", "train", 3, unused=[1, 2, 3])
    write(tmp_path / "c", "train", 4)
    first, same, other = (load_examples(TASK, "train", data_dir=tmp_path / name).sha256 for name in "abc")
    assert first == same != other
    lines = "".join(f'["say train {n}:", "{word}", [], null]\n' for n, word in enumerate(["no", "yes", "no"]))
    assert first == hashlib.sha256(lines.encode()).hexdigest()
    worded = TASK.model_copy(update={"labels": {"0": "no", "1": "yep"}})
    assert load_examples(worded, "train", data_dir=tmp_path / "a").sha256 != first


def test_only_the_rows_of_the_subset_and_their_numbers_in_the_file(tmp_path: Path) -> None:
    hub = HubDataset(path="someone/toy", config="plain", where={"subset": "b"})
    task = TASK.model_copy(update={"hub": hub, "split_rule": "own"})
    write(tmp_path, "train", 5, subset=["a", "b", "a", "b", "b"])
    assert rows_of(task, "train", tmp_path) == [1, 3, 4]
    none = task.model_copy(update={"hub": HubDataset(path="someone/toy", config="plain", where={"subset": "z"})})
    with pytest.raises(
        AttemptError, match=r"no rows with subset 'z' in '.*train\.parquet', and 'train' of someone/toy"
    ):
        load_examples(none, "train", data_dir=tmp_path)
    wrong = task.model_copy(update={"hub": HubDataset(path="someone/toy", config="plain", where={"part": "b"})})
    with pytest.raises(AttemptError, match="no column 'part'"):
        load_examples(wrong, "train", data_dir=tmp_path)


def test_shards_named_as_on_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path, "train", 3)
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    path = write(tmp_path, "train", 2)
    path.rename(path.with_name("train-00001-of-00002.parquet"))
    rows = load_examples(TASK, "train", data_dir=tmp_path)
    assert [example.row for example in rows.examples] == [0, 1, 2, 3, 4]
    assert rows.examples[3].input == "say train 0:"
    assert "and 1 more" in rows.origin


def test_a_bad_row_is_named_with_its_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train", 3)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "label": [0, 1, -1]}), path)
    with pytest.raises(AttemptError) as failure:
        load_examples(TASK, "train", data_dir=tmp_path)
    assert failure.value.message == f"{path}, row 3: unknown label '-1' in column 'label'"


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, "train", 1)
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["a"], "label": [0]}), path)
    with pytest.raises(AttemptError, match="no column 'text', which task 'toy' needs") as failure:
        load_examples(TASK, "train", data_dir=tmp_path)
    assert failure.value.hint == "Did you mean texts? The columns there are: texts, label."


def test_a_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train", 1)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(AttemptError, match="cannot be read as parquet"):
        load_examples(TASK, "train", data_dir=tmp_path)


def test_rows_that_are_nowhere_say_where_was_sought(tmp_path: Path) -> None:
    with pytest.raises(AttemptError) as failure:
        load_examples(load_task("scitail"), "train", data_dir=tmp_path)
    expected = tmp_path / "allenai" / "scitail" / "snli_format" / "train.parquet"
    assert f"no file '{expected}'" in failure.value.message
    assert "'train' of allenai/scitail (snli_format): the Hugging Face hub cannot be reached" in failure.value.message
    for way_out in ("--data-dir", "ATTEMPT_DATA", "--train-file"):
        assert way_out in str(failure.value.hint)


def test_an_unknown_split() -> None:
    with pytest.raises(AttemptError, match="no split named 'dev'"):
        load_examples(TASK, "dev")


def test_a_split_without_rows(tmp_path: Path) -> None:
    task = TASK.model_copy(update={"split_rule": "held-out"})
    path = write(tmp_path, "train", 9)
    with pytest.raises(AttemptError, match="no rows for 'validation' of task 'toy'") as failure:
        load_examples(task, "validation", data_dir=tmp_path)
    assert f"{path} has 9 rows" in failure.value.message


@pytest.mark.rows
def test_real_splits_have_the_sizes_of_the_literature(real_rows: Path) -> None:
    sizes = {
        ("rte", "train"): 2490,
        ("rte", "validation"): 138,
        ("rte", "test"): 139,
        ("wsc.fixed", "test"): 52,
        ("cb", "validation"): 28,
        ("cb", "test"): 28,
        ("stsb", "test"): 750,
        ("sst2", "test"): 872,
        ("sst2", "validation"): 1000,
        ("mnli", "test"): 9815,
    }
    for (name, split), size in sizes.items():
        rows = load_examples(load_task(name), split, data_dir=real_rows)
        assert len(rows.examples) == size
        assert len({example.row for example in rows.examples}) == size


@pytest.mark.rows
def test_a_copy_of_a_task_with_another_rule_serves_where_a_split_is_missing(real_rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AttemptError, match="validation_mismatched") as failure:
        load_examples(load_task("mnli"), "validation", data_dir=real_rows)
    assert "attempt tasks show mnli --yaml" in str(failure.value.hint)
    text = task_file("mnli").read_text().replace("split_rule: own", "split_rule: held-out")
    (tmp_path / "mnli-here.yaml").write_text(text)
    rows = load_examples(load_task(tmp_path / "mnli-here.yaml"), "validation", data_dir=real_rows, limit=10)
    assert "the first 1,000 of the seed-42 permutation of 9,999 rows" in rows.origin


@pytest.mark.rows
def test_validation_and_test_of_real_rows_share_nothing(real_rows: Path) -> None:
    for name in ("boolq", "mrpc", "qnli"):
        parts = [load_examples(load_task(name), split, data_dir=real_rows) for split in ("train", "validation", "test")]
        files = [rows.origin.split(":")[0] for rows in parts]
        numbers = [{(file, example.row) for example in rows.examples} for file, rows in zip(files, parts, strict=True)]
        assert len(set.union(*numbers)) == sum(map(len, numbers))
