"""Tasks straight from files: what is read, how labels become words, and what bad files get."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.readers import read_file, read_rows
from attempt_cli.data.rows import load_examples
from attempt_cli.data.splits import permutation
from attempt_cli.errors import AttemptError

ROWS = [
    {"text": "good, really", "label": "yes"},
    {"text": 'say "no"', "label": "no"},
    {"text": "ein Ä\tb", "label": "yes"},
]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_the_same_rows_in_every_form(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.csv", 'text,label\n"good, really",yes\n"say ""no""",no\nein Ä\tb,yes\n'),
        write(tmp_path / "excel.csv", '\ufefftext;label\r\ngood, really;yes\r\n"say ""no""";no\r\nein Ä\tb;yes\r\n'),
        write(tmp_path / "a.tsv", 'text\tlabel\ngood, really\tyes\n"say ""no"""\tno\n"ein Ä\tb"\tyes\n'),
        write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in ROWS) + "\n\n"),
        write(tmp_path / "a.json", json.dumps(ROWS)),
        write(tmp_path / "nested.json", json.dumps({"about": "x", "data": ROWS})),
        write(tmp_path / "lines.json", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for path in [*files, tmp_path / "a.parquet"]:
        assert read_rows(path) == ROWS, path.name


def test_quotation_marks_in_a_tsv_of_glue_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "glue.tsv", 'text\tlabel\n" he said\t0\n"whole"\t1\nand "this"\t0\n')
    assert [row["text"] for row in read_rows(path)] == ['" he said', "whole", 'and "this"']


def test_only_line_breaks_end_a_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x0cc\x85d"
    rows = [{"text": odd, "label": "x"}]
    for path in (
        write(tmp_path / "a.csv", f"text,label\n{odd},x\n"),
        write(tmp_path / "a.tsv", f"text\tlabel\r\n{odd}\tx\r\n"),
        write(tmp_path / "a.jsonl", json.dumps(rows[0], ensure_ascii=False) + "\r\n"),
    ):
        assert read_rows(path) == rows


def test_a_cell_over_several_lines_keeps_the_line_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",yes\nthree,no\n')
    content = read_file(path)
    assert content.rows[0]["text"] == "one\ntwo"
    assert content.lines == (2, 4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.csv", "text,label\na,b\nc\n", "a.csv, line 3: 1 cells where the header has 2"),
        ("a.csv", "text,text\na,b\n", "two columns are named 'text'"),
        ("a.csv", 'text,label\n"open,b\n', "a.csv, line 2:"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": }\n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: not an object but [1]"),
        ("a.json", '{"a": ', "a.json, line 1: not JSON"),
        ("a.json", "3", "does not hold a list of objects"),
        ("a.json", '[{"text": "a"}, 4]', "a.json, row 2: not an object but 4"),
        ("a.parquet", "text", "cannot be read as parquet"),
        ("a.txt", "text", "cannot tell what '.txt' holds"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(AttemptError) as failure:
        read_rows(path)
    assert message in failure.value.message
    assert str(tmp_path) in failure.value.message
    assert failure.value.hint


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", "a,b\n1,2\n")
    with pytest.raises(AttemptError, match="no file") as failure:
        read_rows(tmp_path / "review.csv")
    assert failure.value.hint == "Did you mean reviews.csv?"
    with pytest.raises(AttemptError, match="is a folder"):
        read_rows(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,b\ncafé,b\n", "latin-1")
    with pytest.raises(AttemptError, match=r"a\.csv, line 3: not UTF-8"):
        read_rows(path)


def test_labels_become_words_as_they_are_sorted(tmp_path: Path) -> None:
    train = write(tmp_path / "My reviews (2).csv", "text,stars\n" + "".join(f"t{n},{n}\n" for n in (10, 9, 2)))
    task = task_from_files(train=train, input="review: {text} stars:", label="stars")
    assert task.name == "My-reviews-2"
    assert task.label_words == ("2", "9", "10")
    assert task.metrics == ("accuracy",)
    assert task.render({"text": "a", "stars": "9"}).label == 1


def test_numbers_and_truth_values_as_text(tmp_path: Path) -> None:
    lines = [{"t": "a", "l": True}, {"t": "b", "l": False}, {"t": "c", "l": True}]
    train = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    task = task_from_files(train=train, input="{t}:", label="l")
    assert task.label_words == ("false", "true")
    pyarrow.parquet.write_table(pyarrow.table({"t": ["a", "b"], "l": [1.0, 0.0]}), tmp_path / "a.parquet")
    assert task_from_files(train=tmp_path / "a.parquet", input="{t}:", label="l").label_words == ("0", "1")


def test_given_words(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,1\nb,0\n")
    task = task_from_files(train=train, input="{text}:", label="label", labels="1=good, 0=bad")
    assert task.label_words == ("good", "bad")
    for wrong in ("1=good,0", "=x", "1=", "1=a,1=b"):
        with pytest.raises(AttemptError, match="labels"):
            task_from_files(train=train, input="{text}:", label="label", labels=wrong)
    with pytest.raises(AttemptError, match="row 1: unknown label '1'") as failure:
        task_from_files(train=train, input="{text}:", label="label", labels="0=bad,2=good")
    assert failure.value.hint == "--labels has '0', '2'."
    with pytest.raises(AttemptError, match="two values have the word 'same'"):
        task_from_files(train=train, input="{text}:", label="label", labels="0=same,1=same")


def test_files_must_agree_on_the_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\na,yes\nb,no\n")
    test = write(tmp_path / "test.csv", "text,label\na,yes\nb,No\n")
    with pytest.raises(AttemptError) as failure:
        task_from_files(train=train, test=test, input="{text}:", label="label")
    assert failure.value.message == f"{test}, line 3, row 2: unknown label 'No' in column 'label'"
    assert failure.value.hint == "train.csv has 'no', 'yes'."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "lable"}, "no column 'lable'"),
        ({"input": "{txt}:"}, "no column 'txt'"),
        ({"input": "no column at all"}, "names no column"),
        ({"input": "{text"}, "names no column"),
        ({"label": None}, "needs the column of its label"),
        ({"label": "one"}, "holds only 'x'"),
        ({"label": "hole"}, "line 3, row 2: nothing in column 'hole'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, str | None], message: str) -> None:
    train = write(tmp_path / "a.csv", "text,label,one,hole\na,yes,x,1\nb,no,x,\n")
    with pytest.raises(AttemptError) as failure:
        task_from_files(**{"train": train, "input": "{text}:", "label": "label", **options})  # type: ignore[arg-type]
    assert message in failure.value.message
    assert failure.value.hint


def test_a_column_of_texts_is_no_label(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{n},l{n}\n" for n in range(150)))
    with pytest.raises(AttemptError, match="these are not labels"):
        task_from_files(train=train, input="{text}:", label="label")


def test_no_file_at_all() -> None:
    with pytest.raises(AttemptError, match="no file"):
        task_from_files(input="{text}:", label="label")


def test_validation_is_held_out_of_train_when_there_is_no_file_for_it(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(30)))
    test = write(tmp_path / "test.csv", "text,label\nx,0\n")
    task = task_from_files(train=train, test=test, input="{text}:", label="label")
    assert [example.row for example in load_examples(task, "validation").examples] == permutation(30)[:3]
    assert [example.row for example in load_examples(task, "train").examples] == permutation(30)[3:]
    assert [example.input for example in load_examples(task, "test").examples] == ["x:"]
    assert str(test) in load_examples(task, "test").origin


def test_files_for_each_split_are_taken_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "text,label\na,0\nb,1\n")
    task = task_from_files(train=path, validation=path, input="{text}:", label="label")
    assert [example.row for example in load_examples(task, "train").examples] == [0, 1]
    assert [example.row for example in load_examples(task, "validation").examples] == [0, 1]
    with pytest.raises(AttemptError, match="has no file for 'test'") as failure:
        load_examples(task, "test")
    assert "--test-file" in str(failure.value.hint)


def test_free_text_from_a_file(tmp_path: Path) -> None:
    lines = [{"q": "who?", "a": ["Ann", "Ann B."]}, {"q": "what?", "a": "tea"}]
    train = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    task = task_from_files(train=train, input="{q}", answers="a")
    assert not task.is_classification
    assert task.metrics == ("squad_f1", "squad_em")
    assert task.render(lines[0]).references == ("Ann", "Ann B.")
    assert task.render(lines[1]).target == "tea"


def test_bad_rows_of_a_text_file_are_named_with_their_line(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", '{"t": "a", "l": "x"}\n\n{"t": null, "l": "y"}\n')
    task = task_from_files(train=train, input="{t}:", label="l")
    test_only = task_from_files(test=train, input="{t}:", label="l")
    assert test_only.split_rule == "own"
    with pytest.raises(AttemptError, match=r"a\.jsonl, line 3, row 2: nothing in column 't'"):
        load_examples(test_only, "test")
    assert task.label_words == ("x", "y")


@pytest.mark.rows
def test_real_rows_written_as_csv_make_the_same_examples(real_rows: Path, tmp_path: Path) -> None:
    import csv

    table = pyarrow.parquet.read_table(real_rows / "fancyzhx" / "yelp_polarity" / "plain_text" / "train.parquet")
    rows = table.slice(0, 300).to_pylist()
    with (tmp_path / "yelp.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(table.slice(0, 300), tmp_path / "yelp.parquet")
    made = [
        load_examples(
            task_from_files(
                train=tmp_path / name, input="review: {text}\nsentiment:", label="label", labels="0=negative,1=positive"
            ),
            "train",
        )
        for name in ("yelp.csv", "yelp.parquet")
    ]
    assert made[0].sha256 == made[1].sha256
    assert len(made[0].examples) == 270
