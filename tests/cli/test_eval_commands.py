"""`attempt eval`, `predict` and `fewshot` as users meet them, on a tiny random model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempt_cli.evaluation.statistics import mean_interval, paired_difference, proportion_interval
from attempt_registry import Registry
from tests.by_hand import holm
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv, write_jsonl

FILES = f"--train-file train.csv --validation-file validation.csv {READ}"
QUICK = f"{FILES} --dtype float32 --steps 3 --batch-size 8 --learning-rate 0.1"
FLOAT = "--dtype float32"
TEST = f"--test-file test.csv {FLOAT}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Attempt:
    """A registry with the sources one and two, and for the task aim its targets by ATTEMPT and by SPoT."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(folder / f"{name}.csv", toy_rows(count, seed))
    attempt = Attempt(folder, llama)
    for seed, name in enumerate(("one", "two")):
        attempt.succeed(f"train-source {name} {QUICK} --prompt-length 4 --seed {seed} --eval-every 0")
    attempt.succeed(f"train-target aim {QUICK} --sources one,two --attention-rank 4")
    attempt.succeed(f"train-target aim {QUICK} --method spot --init-from two")
    return attempt


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- eval


def test_the_whole_table(trained: Attempt) -> None:
    result = trained.succeed(f"eval {TEST} --prompt none --prompt one --composition aim-attempt")
    header, *rows = result.out.splitlines()
    assert header.split() == ["task", "model", "metric", "score", "interval", "n", "rows_per_second", "attention"]
    share, weights = r"\d+\.\d", r"one@1 0\.\d\d, two@1 0\.\d\d, target 0\.\d\d"
    for row, model, attention in zip(rows, ("no prompt", "one@1", "aim-attempt@1"), ("-", "-", weights), strict=True):
        pattern = rf"one +{model} +accuracy +{share} +{share}-{share} +24 +{share} +{attention}"
        assert re.fullmatch(pattern, row), row
    assert result.err == f"loading {trained.backbone} …\n"


def test_scores_intervals_and_predictions_agree(trained: Attempt) -> None:
    document = trained.json(f"eval {TEST} --prompt one --composition aim-attempt --output predictions.jsonl")
    assert document["version"] == 1
    predictions = lines_of(trained.folder / "predictions.jsonl")
    assert len(predictions) == 2 * 24
    moods = [row["mood"] for row in toy_rows(24, 2)]
    for evaluation in document["evaluations"]:
        lines = [line for line in predictions if line["model"] == evaluation["model"]]
        assert [line["row"] for line in lines] == list(range(24))
        assert [line["target"] for line in lines] == moods
        assert lines[0]["input"].endswith(" label:")
        hits = sum(line["prediction"] == line["target"] for line in lines)
        assert evaluation["score"] == evaluation["metrics"]["accuracy"] == pytest.approx(hits / 24, abs=1e-6)
        low, high = evaluation["interval"]
        assert low <= evaluation["score"] <= high
        assert (low, high) == pytest.approx(proportion_interval(hits, 24), abs=1e-6)
        assert (evaluation["n"], evaluation["truncated"], evaluation["metric"]) == (24, 0, "accuracy")
        for line in lines:
            assert set(line["probabilities"]) == {"yes", "no"}
            assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4)
            assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].get)
            if evaluation["model"] == "one@1":
                assert "attention" not in line
            else:
                assert list(line["attention"]) == ["one@1", "two@1", "target"]
                assert sum(line["attention"].values()) == pytest.approx(1, abs=1e-4)
        if "attention" in evaluation:
            for name, weight in evaluation["attention"].items():
                assert weight == pytest.approx(sum(line["attention"][name] for line in lines) / 24, abs=2e-4)


def test_every_evaluation_is_a_run(trained: Attempt) -> None:
    document = trained.json(f"eval {TEST} --prompt none --composition aim-attempt --limit 10 --seed 3")
    bare, mixture = (opened(trained).run(evaluation["run"]) for evaluation in document["evaluations"])
    assert (bare.inputs, bare.artefacts) == ((), ())
    assert set(mixture.inputs) == {
        "composition:aim-attempt@1",
        "prompt:aim-attempt@1",
        "prompt:one@1",
        "prompt:two@1",
        "attention:aim-attempt@1",
    }
    assert mixture.rows["test"]["n"] == 10
    assert "10 of these by seed 3" in mixture.rows["test"]["origin"]
    assert (mixture.seed, mixture.numbers["score"]) == (3, document["evaluations"][1]["score"])
    assert mixture.command.startswith("attempt --format json eval --test-file test.csv")
    assert bare.rows["test"]["sha256"] == mixture.rows["test"]["sha256"]
    assert mixture.id in [run.id for run in opened(trained).lineage("aim-attempt").used_by]


def test_without_a_name_a_task_is_served_by_what_was_trained_for_it_last(attempt: Attempt) -> None:
    fields = "name: aim\ninput: '{text} label:'\nlabel: mood\nlabels: {'no': 'no', 'yes': 'yes'}\nmetrics: [accuracy]\n"
    (attempt.folder / "aim.yaml").write_text(f"{fields}files: {{train: train.csv, test: test.csv}}\n")
    quick = f"{FLOAT} --steps 1 --eval-every 0"

    def served() -> str:
        (evaluation,) = attempt.json(f"eval --tasks aim.yaml {FLOAT}")["evaluations"]
        return str(evaluation["model"])

    missing = attempt(f"eval --tasks aim.yaml {FLOAT}")
    assert missing.code == 1
    assert "nothing was trained for the task 'aim'" in missing.err
    assert "--prompt none" in missing.err
    attempt.succeed(f"train-source aim.yaml {quick} --prompt-length 4 --name a-source")
    assert served() == "a-source@1"
    attempt.succeed(f"train-source other {QUICK} --prompt-length 4 --eval-every 0")
    attempt.succeed(f"train-target aim.yaml {quick} --sources other --attention-rank 4")
    assert served() == "aim-attempt@1"
    attempt.succeed(f"train-target aim.yaml {quick} --method spot --init-from other")
    # the times of records are in seconds
    names = {prompt.name: prompt.created for prompt in opened(attempt).prompts(task="aim")}
    later = names["aim-spot"] > names["aim-attempt"]
    last = "aim-spot@1" if later else "aim-attempt@1"
    assert served() == last
    few = "--sources other --seeds 1 --steps 1 --methods prompt-tuning,attempt"
    attempt.succeed(f"fewshot -k 4 --tasks aim.yaml {few} {FLOAT}")
    assert served() == last  # an experiment serves nothing


@pytest.mark.parametrize("model", ["--prompt one", "--composition aim-attempt", "--prompt none --prompt aim-spot"])
def test_on_files_the_task_is_the_prompt_s_own(trained: Attempt, model: str) -> None:
    write_jsonl(trained.folder / "more.jsonl", toy_rows(8, 5))
    evaluations = trained.json(f"eval {model} --test-file more.jsonl {FLOAT}")["evaluations"]
    assert {evaluation["n"] for evaluation in evaluations} == {8}
    assert evaluations[0]["task"] == ("one" if model == "--prompt one" else "aim")
    assert str(trained.folder / "more.jsonl") in evaluations[0]["rows"]


def test_files_with_a_task_of_their_own(trained: Attempt) -> None:
    rows = [{"words": row["text"], "good": str(int(row["mood"] == "yes"))} for row in toy_rows(9)]
    write_csv(trained.folder / "own.csv", rows)
    own = "--test-file own.csv --input '{words} label:' --label good --labels '0=no,1=yes'"
    (evaluation,) = trained.json(f"eval --prompt one {own} {FLOAT}")["evaluations"]
    assert (evaluation["task"], evaluation["n"]) == ("own", 9)
    assert trained(f"eval --prompt one --test-file own.csv {FLOAT}").code == 1  # the prompt's task reads other columns


def test_other_splits_and_samples(trained: Attempt) -> None:
    by_split = {}
    for split in ("validation", "test"):
        files = f"--validation-file validation.csv --test-file test.csv --split {split}"
        (evaluation,) = trained.json(f"eval --prompt one {files} {FLOAT}")["evaluations"]
        by_split[split] = evaluation["n"]
    assert by_split == {"validation": 12, "test": 24}


def test_eval_leaves_a_registry_that_cannot_be_written_and_still_answers(trained: Attempt) -> None:
    before = len(opened(trained).runs())
    result = trained.succeed(f"--format json eval {TEST} --prompt one", prepare=read_only_registry)
    assert "This evaluation is not recorded: " in result.err
    assert "run" not in result.json["evaluations"][0]
    assert len(opened(trained).runs()) == before


def read_only_registry() -> None:
    from attempt_cli.cli.main import Settings

    def registry(self: Settings) -> Registry:
        return Registry.open(self.registry_path, read_only=True)

    Settings.registry = registry  # type: ignore[method-assign]


def test_an_output_that_cannot_be_written_is_told_before_the_work(trained: Attempt) -> None:
    before = len(opened(trained).runs())
    result = trained(f"eval {TEST} --prompt one --output nowhere/predictions.jsonl")
    assert result.code == 1
    assert "nowhere/predictions.jsonl" in result.err
    assert len(opened(trained).runs()) == before


def test_long_rows_are_counted(trained: Attempt) -> None:
    result = trained.succeed(f"eval {TEST} --prompt one --max-length 8 --max-tokens 64")
    assert re.search(r"\d+ inputs were longer than the limit and lost their middle\.", result.err)


# --- prompts from outside


def test_a_prompt_from_a_file_is_evaluated(trained: Attempt) -> None:
    """The tensor of a prompt, written as .npy in raw units, says what the prompt says."""
    registry = opened(trained)
    one = registry.prompt("one")
    np.save(trained.folder / "raw.npy", registry.prompt_tensor(one) * one.embedding_scale)
    np.save(trained.folder / "rms.npy", registry.prompt_tensor(one))
    where = f"--backbone tiny --task one --placement {one.placement}"
    trained.succeed(f"registry add raw.npy {where} --name from-raw")
    trained.succeed(f"registry add rms.npy {where} --name from-rms --scale {one.embedding_scale!r}")
    files = f"--test-file test.csv {READ} {FLOAT}"
    names = ("one", "from-raw", "from-rms")
    trained.succeed(f"eval {files} {' '.join(f'--prompt {name}' for name in names)} --output files.jsonl")
    predictions = lines_of(trained.folder / "files.jsonl")
    by_model = [[line["probabilities"] for line in predictions if line["model"] == f"{name}@1"] for name in names]
    for row, raw, rms in zip(*by_model, strict=True):
        assert raw == pytest.approx(row, abs=1e-4)
        assert rms == pytest.approx(row, abs=1e-4)
    alone = trained(f"eval {TEST} --prompt from-raw")
    assert alone.code == 1  # its record says nothing of a task, and no task is named one
    assert "no task named 'one'" in alone.err


# --- free text


def test_free_text_is_trained_generated_and_scored(attempt: Attempt) -> None:
    rows = [{"text": row["text"], "answer": "two three" if row["mood"] == "yes" else "four"} for row in toy_rows(20)]
    write_jsonl(attempt.folder / "answers.jsonl", rows)
    read = "--input '{text} label:' --answers answer"
    document = attempt.json(
        f"train-source qa --train-file answers.jsonl --validation-file answers.jsonl {read} {FLOAT} --steps 2 "
        "--prompt-length 4 --eval-rows 5"
    )
    assert list(document["training"]["validation"]) == ["squad_f1", "squad_em"]
    (evaluation,) = attempt.json(f"eval --prompt qa --test-file answers.jsonl --limit 6 --output qa.jsonl {FLOAT}")[
        "evaluations"
    ]
    assert list(evaluation["metrics"]) == ["squad_f1", "squad_em"]
    assert evaluation["interval"][0] <= evaluation["score"] <= evaluation["interval"][1]
    predictions = lines_of(attempt.folder / "qa.jsonl")
    assert len(predictions) == 6
    assert all("probabilities" not in line and isinstance(line["prediction"], str) for line in predictions)
    predicted = attempt.succeed(f"predict qa {FLOAT}", input="it was two\nit is one\n").lines
    assert [set(line) for line in predicted] == [{"row", "text"}, {"row", "text"}]


def test_a_squad_like_task_of_ones_own(attempt: Attempt) -> None:
    rows = [
        {
            "context": f"{row['text']} . the label is {row['mood']}",
            "question": "the label",
            "answers": [row["mood"], "x"],
        }
        for row in toy_rows(12)
    ]
    (attempt.folder / "rows.json").write_text(json.dumps(rows))
    (attempt.folder / "qa.yaml").write_text(
        "name: own-squad\ninput: |-\n  {context}\n  question: {question}\n  answer:\nanswers: answers\n"
        "metrics: [squad_f1, squad_em]\nfiles: {train: rows.json, test: rows.json}\n"
    )
    attempt.succeed(f"train-source qa.yaml {FLOAT} --steps 2 --prompt-length 4 --eval-every 0")
    (evaluation,) = attempt.json(f"eval --tasks qa.yaml {FLOAT} --limit 4")["evaluations"]
    assert (evaluation["task"], evaluation["model"], evaluation["n"]) == ("own-squad", "own-squad@1", 4)


def test_tasks_of_one_name_are_told_apart(attempt: Attempt) -> None:
    """Reviews and topics, each in a folder of its own, and then other labels under the name of the reviews."""
    for name, words in (("reviews", {"yes": "good", "no": "bad"}), ("topics", {"yes": "parcel", "no": "bill"})):
        (attempt.folder / name).mkdir()
        for split, count in (("train", 16), ("test", 8)):
            rows = [{**row, "mood": words[row["mood"]]} for row in toy_rows(count)]
            write_csv(attempt.folder / name / f"{split}.csv", rows)
    made = attempt.json(f"train-source --train-file reviews/train.csv {READ} {FLOAT} --steps 1 --eval-every 0")
    assert (made["training"]["task"], made["training"]["name"]) == ("reviews", "reviews@1")
    untrained = attempt(f"eval --test-file topics/test.csv {READ} {FLOAT}")
    assert untrained.code == 1
    assert "nothing was trained for the task 'topics'" in untrained.err
    scored = attempt.json(f"eval --test-file reviews/test.csv {READ} {FLOAT}")["evaluations"]
    assert [row["model"] for row in scored] == ["reviews@1"]
    (attempt.folder / "other").mkdir()
    (attempt.folder / "topics").rename(attempt.folder / "other" / "reviews")
    for rows, read, difference in (
        ("other/reviews/test.csv", READ, "labels"),
        ("reviews/test.csv", READ.replace("label:", "mood:"), "input"),
        (
            "reviews/test.csv --train-file other/reviews/train.csv --labels bad=bad,good=good,bill=1,parcel=2",
            READ,
            "its",
        ),
    ):
        refused = attempt(f"eval --test-file {rows} {read} {FLOAT}")
        assert (refused.code, refused.out) == (1, "")
        assert "'reviews@1' was trained for another task of the name 'reviews': it differs in " in refused.err
        assert difference in refused.err
        assert "--prompt or --composition reviews@1" in refused.err


# --- predict


def test_predict_reads_every_form_of_the_same_rows(trained: Attempt) -> None:
    rows = toy_rows(5, 7)
    texts = [{"text": row["text"]} for row in rows]
    write_csv(trained.folder / "p.csv", rows)
    write_jsonl(trained.folder / "p.jsonl", texts)
    (trained.folder / "p.tsv").write_text("text\tmore\n" + "".join(f"{row['text']}\t-\n" for row in rows))
    (trained.folder / "p.txt").write_text("\ufeff" + "".join(f"{row['text']}\r\n" for row in rows) + "\r\n")
    lines, jsonl = (trained.folder / "p.txt").read_text(), (trained.folder / "p.jsonl").read_text()
    csv = (trained.folder / "p.csv").read_text()
    array = json.dumps(texts, indent=1)
    tsv = (trained.folder / "p.tsv").read_text()
    first = trained.succeed(f"predict aim-attempt p.csv {FLOAT}")
    assert len(first.lines) == 5
    for line in first.lines:
        assert list(line) == ["row", "label", "word", "probabilities", "attention"]
        assert line["label"] == line["word"] == max(line["probabilities"], key=line["probabilities"].get)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert sum(line["attention"].values()) == pytest.approx(1, abs=1e-4)
    for arguments, piped in (
        ("p.jsonl", ""),
        ("p.tsv", ""),
        ("p.txt", ""),
        ("", lines),
        ("-", jsonl),
        ("", "\ufeff" + jsonl),
        ("", csv),
        ("", "\ufeff" + csv.replace(",", ";")),
        ("", tsv),
        ("", array),
    ):
        again = trained.succeed(f"predict aim-attempt {arguments} {FLOAT}", input=piped)
        assert again.lines == first.lines, arguments or piped
    assert first.err == f"loading {trained.backbone} …\n"


def test_every_line_of_a_pipe_has_its_own_line_of_output(trained: Attempt) -> None:
    result = trained.succeed(f"predict one {FLOAT}", input="it was good\n\nit was bad\n\n\n")
    assert [line["row"] for line in result.lines] == [0, 1, 2]
    assert result.lines[1] == {"row": 1, "label": None, "word": None}
    assert result.lines[2]["label"] in ("yes", "no")
    assert "lines without text have null for a prediction; there are 1." in result.err
    several = trained.succeed(f"predict --prompts one,two {FLOAT}", input="it was good\n\nit was bad\n").lines
    assert [list(line) for line in several] == [["one", "two"]] * 3
    assert several[2]["one"] == result.lines[2]


def test_plain_lines_that_may_be_a_table_get_a_note(trained: Attempt) -> None:
    result = trained.succeed(f"predict one {FLOAT}", input="it,good\nit,bad\n")
    assert len(result.lines) == 2
    assert "Note: every line of standard input has 2 cells between commas" in result.err


def test_predict_reads_other_encodings_when_they_are_named(trained: Attempt) -> None:
    (trained.folder / "wide.txt").write_bytes("café was good\n".encode("utf-16"))
    first = trained.succeed(f"predict one {FLOAT}", input="café was good\n").lines
    assert trained.succeed(f"predict one wide.txt --encoding utf-16 {FLOAT}").lines == first
    assert "--encoding utf-16" in trained(f"predict one wide.txt {FLOAT}").err


def test_a_closed_standard_input_is_told(trained: Attempt) -> None:
    result = trained(f"predict one {FLOAT}", prepare=close_standard_input)
    assert (result.code, result.out) == (1, "")
    assert "standard input is closed" in result.err


def close_standard_input() -> None:
    """As the shell's `<&-` leaves it."""
    sys.stdin = None  # type: ignore[assignment]


def test_a_row_is_a_line_whatever_is_in_it(trained: Attempt) -> None:
    odd = "it was\u2028good\x0cor\x85so"
    plain = trained.succeed(f"predict one {FLOAT}", input=f"{odd}\n").lines
    jsonl = trained.succeed(f"predict one {FLOAT}", input=json.dumps({"text": odd}, ensure_ascii=False)).lines
    assert len(plain) == 1
    assert plain == jsonl


def test_predict_says_what_eval_says(trained: Attempt) -> None:
    trained.succeed(f"eval {TEST} --composition aim-attempt --output by-eval.jsonl")
    predictions = trained.succeed(f"predict aim-attempt test.csv {FLOAT}").lines
    for line, other in zip(lines_of(trained.folder / "by-eval.jsonl"), predictions, strict=True):
        assert other["word"] == line["prediction"]
        assert other["probabilities"] == pytest.approx(line["probabilities"], abs=2e-5)
        assert other["attention"] == pytest.approx(line["attention"], abs=2e-5)


def test_labels_come_back_as_they_stood_in_the_file(attempt: Attempt) -> None:
    rows = [{"t": row["text"], "stars": "5" if row["mood"] == "yes" else "1"} for row in toy_rows(16)]
    write_csv(attempt.folder / "stars.csv", rows)
    read = "--input '{t} label:' --label stars --labels '1=bad,5=good'"
    attempt.succeed(f"train-source stars --train-file stars.csv {read} {FLOAT} --steps 1 --eval-every 0")
    for line in attempt.succeed(f"predict stars {FLOAT}", input="it was good\nit was bad\n").lines:
        assert (line["label"], line["word"]) in {("1", "bad"), ("5", "good")}
        assert set(line["probabilities"]) == {"bad", "good"}


@pytest.mark.parametrize(
    ("arguments", "piped", "code", "message"),
    [
        ("aim-attempt", "", 1, "no rows in standard input"),
        ("aim-attempt", "\n \n", 1, "no rows in standard input"),
        ("aim-attempt", '{"text": "a"}\n{"text"\n', 1, "standard input, line 2: not JSON"),
        ("aim-attempt", '{"text": "a"}\n\n[1]\n', 1, "standard input, line 3: not an object"),
        ("aim-attempt", '{"words": "a"}\n', 1, "standard input: no column 'text', which task 'aim' reads"),
        ("aim-attempt", "txt,mood\nit was good,yes\n", 1, "looks like a table without a column 'text'"),
        ("aim-attempt", "texts,mood\nit was good, really,yes\nbad\n", 1, "looks like a table without a column 'text'"),
        ("aim-attempt", "it was good\tyes\nit was bad\tno\n", 1, "looks like a table without a column 'text'"),
        ("aim-attempt", "text,stars\nlovely, but leaks,3\n", 1, "line 2: 3 cells where the header has 2"),
        ("aim-attempt", "text,stars\nlovely,3\n,2\n", 1, "row 2: nothing in column 'text'"),
        ("aim-attempt", '{"text": "\\ud800"}\n', 1, "row 1: a value that does not fit"),
        ("aim-attempt --encoding warp", "a\n", 2, "'warp' is no text encoding"),
        ("aim-attempt", '{"text": "a"}\n{"text": null}\n', 1, "row 2: nothing in column 'text'"),
        ("aim-attempt nowhere.csv", "", 1, "no file 'nowhere.csv'"),
        ("aim-attempt nowhere.txt", "", 1, "no file 'nowhere.txt'"),
        ("aim-attempt latin.txt", "", 1, "not UTF-8"),
        ("aim-attempt .", "", 2, "is a directory"),
        ("aim-atempt", "it was good\n", 1, "no prompt or composition named 'aim-atempt'"),
        ("aim-attempt --task rte", "it was good\n", 1, "has no target prompt for the task 'rte'"),
        ("aim-attempt --max-length 2", "it was good\n", 2, "Invalid value for '--max-length'"),
    ],
)
def test_predict_refuses(trained: Attempt, arguments: str, piped: str, code: int, message: str) -> None:
    (trained.folder / "latin.txt").write_bytes("café was good\n".encode("latin-1"))
    result = trained(f"predict {arguments} {FLOAT}", input=piped)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) >= 2  # what to do next


def test_several_targets_in_one_composition(trained: Attempt) -> None:
    trained.succeed(f"train-target other {QUICK} --sources one,two --attention-rank 4 --eval-every 0 --seed 9")
    both = "--target aim-attempt,other-attempt --attention aim-attempt"
    trained.succeed(f"compose both --sources one,two {both}")
    unclear = trained(f"predict both test.csv {FLOAT}")
    assert unclear.code == 2
    assert "choose one with --task (aim, other)" in unclear.err
    predictions = {
        task: trained.succeed(f"predict both test.csv --task {task} {FLOAT}").lines for task in ("aim", "other")
    }
    alone = trained.succeed(f"predict aim-attempt test.csv {FLOAT}").lines
    assert [line["probabilities"] for line in predictions["aim"]] == [
        pytest.approx(line["probabilities"], abs=2e-5) for line in alone
    ]
    assert predictions["other"] != predictions["aim"]


# --- fewshot


def test_fewshot_compares_methods_on_the_same_rows(trained: Attempt) -> None:
    methods = ["none", "source", "prompt-tuning", "spot", "attempt"]
    command = (
        f"fewshot -k 6 --train-file train.csv --test-file test.csv {READ} --seeds 2 --steps 2 --batch-size 4 "
        f"--learning-rate 0.1 --sources one,two --methods {','.join(methods)} {FLOAT}"
    )
    document = trained.json(command)
    assert (document["version"], document["k"], document["per_class"], document["steps"]) == (1, 6, False, 2)
    rows = document["rows"]
    task = trained.folder.name  # "train" says which rows the file holds, not what they are about
    assert list(rows) == [f"{task}/0", f"{task}/1"]
    moods = [row["mood"] for row in toy_rows(40)]
    for numbers in rows.values():  # six in all, as many of each class
        assert sorted(moods[number] for number in numbers) == ["no"] * 3 + ["yes"] * 3
    assert rows[f"{task}/0"] != rows[f"{task}/1"]
    cells = document["cells"]
    assert [(cell["seed"], cell["method"]) for cell in cells] == [(seed, name) for seed in (0, 1) for name in methods]
    registry = opened(trained)
    for cell in cells:
        if cell["steps"]:
            kind = "composition" if cell["method"] == "attempt" else "prompt"
            made = [run for run in registry.runs(uses=f"{kind}:{cell['prompt']}") if run.artefacts]
            assert [run.rows["train"]["rows"] for run in made] == [rows[f"{task}/{cell['seed']}"]]
            assert made[0].budget["steps"] == 2
    scores = {name: [cell["score"] for cell in cells if cell["method"] == name] for name in methods}
    table = {row["method"]: row for row in document["methods"]}
    for name in ("prompt-tuning", "spot", "attempt"):
        mean, width = mean_interval(scores[name])
        assert (table[name]["mean"], table[name]["width"]) == (pytest.approx(mean), pytest.approx(width))
        assert table[name]["scores"] == scores[name]
        if name != "prompt-tuning":
            gap, half = paired_difference(scores[name], scores["prompt-tuning"])
            assert table[name]["difference"] == pytest.approx(gap)
            assert table[name]["difference_width"] == pytest.approx(half)
    assert table["prompt-tuning"]["difference"] is None
    tested = [row for row in document["methods"] if row["p"] is not None]
    assert len(tested) > 1
    assert [row["p_holm"] for row in tested] == pytest.approx(holm([row["p"] for row in tested]))
    assert (table["none"]["width"], table["none"]["steps"]) == (None, 0)
    assert set(table["attempt"]["attention"]) == {"one@1", "two@1", "target"}
    # an experiment is not what serves the task
    assert {prompt.tags for prompt in registry.prompts(task=task)} == {("fewshot",)}


def test_fewshot_per_class_as_a_table(trained: Attempt) -> None:
    result = trained.succeed(
        f"fewshot -k 2 --per-class --train-file train.csv --test-file test.csv {READ} --seeds 1 --steps 1 "
        f"--methods none,prompt-tuning --limit 7 {FLOAT}"
    )
    header, none, tuning = result.out.splitlines()
    columns = ["task", "method", "score", "against_prompt_tuning", "seeds", "n", "steps"]
    columns += ["trained_parameters", "extra_tokens", "training_seconds", "attention"]
    assert header.split() == columns
    task = trained.folder.name
    assert re.fullmatch(rf"{task} +none +\d+\.\d +[+-]\d+\.\d +1 +7 +0 +0 +0 +0 +-", none)
    assert re.fullmatch(rf"{task} +prompt-tuning +\d+\.\d +- +1 +7 +1 +480 +20 +\S+ +-", tuning)
    made = opened(trained).prompt(f"{task}-2-per-class-shot-prompt-tuning")
    assert made.length == 20  # no source to take the length from
    (run,) = [run for run in opened(trained).runs(uses=f"prompt:{made.ref}") if run.artefacts]
    assert len(run.rows["train"]["rows"]) == 4


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("-k 41", 1, "class"),
        ("-k 21 --per-class", 1, "class 'no' has 20 rows, 21 are wanted"),
        ("-k 0", 2, "Invalid value for '-k'"),
        ("--methods attempt,sprot", 1, "no method named 'sprot'"),
        ("--sources nobody", 1, "no prompt named 'nobody'"),
        ("--tasks rte", 2, "give --tasks or files, not both"),
        ("--sources one,long", 1, "the prompts differ in length: one@1 4, long@1 6"),
        ("--sources one,two --prompt-length 5", 1, "--prompt-length 5 is not the length of the prompts"),
        ("--tasks squad,rte --methods icl,probe", 1, "the answers of squad are free text"),
    ],
)
def test_fewshot_refuses_before_it_trains(trained: Attempt, options: str, code: int, message: str) -> None:
    if "long" in options:
        trained.succeed(f"train-source long {QUICK} --prompt-length 6 --eval-every 0 --steps 1")
    before = len(opened(trained).runs())
    files = "" if "squad" in options else f"--train-file train.csv --test-file test.csv {READ}"
    files += f" --steps 1 --seeds 1 {FLOAT}"
    result = trained(f"fewshot {files} --methods prompt-tuning,attempt {options}")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert len(opened(trained).runs()) == before
