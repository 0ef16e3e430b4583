"""Tasks straight from files: what is read, how labels become words, and what bad files get."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields, task_from_fields
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.readers import read_file, read_rows
from attempt_cli.data.rows import load_examples
from attempt_cli.data.splits import permutation
from attempt_cli.data.task import Task
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
        ("a.csv", 'text,label\n"open,b\n', "a.csv, line 2:"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": }\n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "a.jsonl, line 2: not an object but [1]"),
        ("a.json", '{"a": ', "a.json, line 1: not JSON"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "a.jsonl, line 1: not JSON (a number has too many digits"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.json", "[" * 100_000, "a.json, line 1: not JSON"),
        ("a.json", "[" + "9" * 5000 + "]", "a.json, line 1: not JSON (a number has too many digits"),
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


# --- names


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("reviews/train.csv", "reviews"),
        ("topics/test.csv.gz", "topics"),
        ("topics/data/validation.jsonl", "topics"),
        ("topics/train-00000-of-00003.parquet", "topics"),
        ("topics/Data_2.tsv", "topics"),
        ("topics/trains.csv", "trains"),
        ("My topics/dev.json", "My-topics"),
        ("topics/mood-train.csv", "mood-train"),
    ],
)
def test_a_task_is_named_by_what_its_rows_are_about(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    if ".parquet" in file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ".json" in file:
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        text = "text,label\na,x\nb,y\n".replace(",", "\t" if ".tsv" in file else ",").encode()
        path.write_bytes(gzip.compress(text) if ".gz" in file else text)
    assert task_from_files(train=path, input="{text}:", label="label").name == name


# --- the answer


def test_an_input_that_gives_the_answer_away_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,mood\na,x\nb,y\n")
    with pytest.raises(AttemptError, match=r"input names \{mood\}, the column of the answer"):
        task_from_files(train=train, input="{text} {mood} mood:", label="mood")
    with pytest.raises(AttemptError, match="the column of the answer"):
        task_from_files(train=train, input="{text} {mood} mood:", answers="mood")
    fields = "name: t\nfiles: {train: a.csv}\nlabel: mood\nlabels: {x: x, y: y}\nmetrics: [accuracy]\n"
    path = write(tmp_path / "t.yaml", fields + "input: '{text} {mood}'\n")
    with pytest.raises(AttemptError, match="the column of the answer"):
        load_task(path)


def class_labels(path: Path, numbers: Sequence[int], names: Sequence[str]) -> Path:
    """Writes a parquet file as `datasets` does."""
    table = pyarrow.table({"text": [f"t{number}" for number in range(len(numbers))], "mood": numbers})
    features = {"text": {"dtype": "string", "_type": "Value"}, "mood": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_class_numbers_of_parquet_have_the_names_of_the_file(tmp_path: Path) -> None:
    train = class_labels(tmp_path / "a.parquet", [1, 0, 1], ["bad", "good", "mixed"])
    task = task_from_files(train=train, input="{text}:", label="mood")
    assert task.labels == {"0": "bad", "1": "good", "2": "mixed"}
    rows = load_examples(task.model_copy(update={"split_rule": "own"}), "train")
    assert [example.target for example in rows.examples] == ["good", "bad", "good"]
    named = task_from_files(train=train, input="{text}:", label="mood", labels="0=no,1=yes")
    assert named.label_words == ("no", "yes")
    hidden = class_labels(tmp_path / "hidden.parquet", [1, -1], ["bad", "good"])
    with pytest.raises(AttemptError, match="row 2: unknown label '-1'"):
        task_from_files(train=hidden, input="{text}:", label="mood")


@pytest.mark.parametrize(
    "labels", [("Good", "good"), ("very  good", "very good"), ("1", "1.0"), ("caf\u00e9", "cafe\u0301")]
)
def test_labels_that_differ_only_by_their_writing_are_refused(tmp_path: Path, labels: tuple[str, str]) -> None:
    train = write(tmp_path / "a.csv", "text,mood\n" + "".join(f"t,{label}\n" for label in (*labels, "other")))
    with pytest.raises(AttemptError, match="differ only by case, spaces or the way they are written") as failure:
        task_from_files(train=train, input="{text}:", label="mood")
    assert all(f"'{label}'" in failure.value.message for label in labels)
    words = {label: label for label in (*labels, "other")}
    assert task_from_files(train=train, input="{text}:", label="mood", labels=words).labels == words


def test_scores_are_no_labels_but_class_numbers_are(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,score\n" + "".join(f"t{n},{n / 5}\n" for n in range(24)) * 2)
    with pytest.raises(AttemptError, match="24 different numbers, which look like scores") as failure:
        task_from_files(train=train, input="{text}:", label="score")
    assert "--answers score --metrics pearson" in str(failure.value.hint)
    task = task_from_files(train=train, input="{text}:", answers="score", metrics=["pearson"])
    assert task.metrics == ("pearson",)
    classes = write(tmp_path / "b.csv", "text,label\n" + "".join(f"t{n},{n}\n" for n in range(24)) * 2)
    assert len(task_from_files(train=classes, input="{text}:", label="label").label_words) == 24


def test_several_labels_a_row_are_refused(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "late"}, {"text": "b", "label": ["late", "broken"]}]
    train = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(AttemptError, match="row 2: several labels in column 'label'"):
        task_from_files(train=train, input="{text}:", label="label")


# --- cells


def test_only_columns_that_are_used_must_be_unique(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "id,text,mood,id,,\n1,a,x,2,,\n3,b,y,4,,\n")
    task = task_from_files(train=train, input="{text}:", label="mood")
    assert [row["text"] for row in read_rows(train)] == ["a", "b"]
    assert read_file(train).columns == ("text", "mood")
    for options in ({"input": "{id} {text}:", "label": "mood"}, {"input": "{text}:", "label": "id"}):
        with pytest.raises(AttemptError, match="two columns are named 'id'"):
            task_from_files(train=train, **options)
    again = pyarrow.Table.from_arrays([pyarrow.array([n, "b"]) for n in "1ax2"], ["id", "text", "mood", "id"])
    pyarrow.parquet.write_table(again, tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet")[0] == {"text": "a", "mood": "x"}
    assert task.columns() == ("text", "mood")


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_an_empty_cell_is_one_thing_in_every_form(tmp_path: Path, ending: str) -> None:
    def task_of(rows: list[dict[str, str | None]], template: str) -> Task:
        path = tmp_path / f"a.{ending}"
        if ending == "csv":
            write(path, "a,b,label\n" + "".join(f"{','.join(v or '' for v in row.values())}\n" for row in rows))
        elif ending == "jsonl":
            write(path, "\n".join(map(json.dumps, rows)))
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return task_from_files(test=path, input=template, label="label")

    full: dict[str, str | None] = {"a": "one", "b": "two", "label": "x"}
    half: dict[str, str | None] = {"a": None, "b": "two", "label": "y"}
    assert load_examples(task_of([full, half], "a: {a} b: {b}"), "test").examples[1].input == "a:  b: two"
    with pytest.raises(AttemptError, match="row 2: nothing in column 'a'"):
        load_examples(task_of([full, half], "{a}"), "test")


def test_bytes_are_text_in_utf8_or_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["café".encode(), b"\xff"], "label": [b"x", b"y"]}), tmp_path / "a.parquet"
    )
    task = task_from_files(train=tmp_path / "a.parquet", input="{text}:", label="label")
    assert task.label_words == ("x", "y")
    rows = read_rows(tmp_path / "a.parquet")
    assert task.render(rows[0]).input == "café:"
    with pytest.raises(AttemptError, match=r"row 2: a value that does not fit .*not UTF-8"):
        task.render(rows[1], 1)


def test_half_a_character_is_named_with_its_row(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", '{"text": "a", "label": "x"}\n{"text": "\\ud800", "label": "y"}\n')
    task = task_from_files(test=train, input="{text}:", label="label")
    with pytest.raises(AttemptError, match=r"row 2: a value that does not fit .*half a character"):
        load_examples(task, "test")
    write(train, '{"text": "a", "label": "x"}\n{"text": "b", "label": "\\ud800"}\n')
    with pytest.raises(AttemptError, match=r"row 2: a label that does not fit .*half a character"):
        task_from_files(train=train, input="{text}:", label="label")


def test_an_object_in_a_template_is_refused(tmp_path: Path) -> None:
    rows = [{"text": {"body": "a"}, "label": "x"}, {"text": {"body": "b"}, "label": "y"}]
    train = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    task = task_from_files(train=train, input="{text.body}:", label="label")
    assert task.render(rows[0]).input == "a:"
    with pytest.raises(AttemptError, match=r"name one of its fields, like \{text.field\}"):
        task_from_files(train=train, input="{text}:", label="label").render(rows[0])


# --- where files are and how they are packed


def test_compressed_files_and_addresses(tmp_path: Path) -> None:
    text = 'text,label\n"good, really",yes\n"say ""no""",no\nein Ä\tb,yes\n'
    lines = "\n".join(map(json.dumps, ROWS)).encode()
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.csv.bz2").write_bytes(bz2.compress(text.encode()))
    (tmp_path / "a.jsonl.zst").write_bytes(pyarrow.compress(lines, codec="zstd", asbytes=True))
    with fsspec.open("memory://rows/topics/train.csv", "wb") as file:
        file.write(text.encode())
    for place in (tmp_path / "a.csv.gz", tmp_path / "a.csv.bz2", tmp_path / "a.jsonl.zst"):
        assert read_rows(place) == ROWS
    url = "memory://rows/topics/train.csv"
    assert read_rows(url) == ROWS
    task = task_from_files(train=url, input="{text}:", label="label")
    assert (task.name, task.files) == ("topics", {"train": url})
    again = task_from_fields(task_fields(task), "a record", Path("/nowhere"))
    assert len(load_examples(again.model_copy(update={"split_rule": "own"}), "train").examples) == 3


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.bz2", "a.csv.xz", "a.jsonl.zst"])
def test_a_damaged_compressed_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "text,label\na,b\n")
    with pytest.raises(AttemptError, match="cannot be decompressed"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("url", ["memory://rows/nowhere.csv", "warp://rows/a.csv"])
def test_an_address_that_cannot_be_read(url: str) -> None:
    with pytest.raises(AttemptError, match="cannot be read"):
        read_rows(url)


@pytest.mark.parametrize(("encoding", "hint"), [("utf-16", "utf-16"), ("latin-1", "cp1252")])
def test_another_encoding_is_read_when_it_is_named(tmp_path: Path, encoding: str, hint: str) -> None:
    path = write(tmp_path / "a.csv", "text,label\ncafé,x\ntea,y\n", encoding)
    with pytest.raises(AttemptError) as failure:
        read_rows(path)
    assert f"--encoding {hint}" in str(failure.value.hint)
    with pytest.raises(AttemptError, match="no text encoding 'warp'"):
        read_rows(path, "warp")
    task = task_from_files(train=path, input="{text}:", label="label", encoding=encoding)
    assert load_examples(task.model_copy(update={"split_rule": "own"}), "train").examples[0].input == "café:"


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
