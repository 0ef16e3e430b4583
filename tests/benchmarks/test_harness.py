"""The harness: turns, medians, ratios; and the check against committed ratios."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bank, check, harness, report
from benchmarks.growth import exponent
from benchmarks.harness import Contender, Report, Times, race


def test_contenders_take_turns_step_by_step() -> None:
    calls: list[str] = []

    def contender(name: str, steps: int) -> Contender:
        return Contender(name, [lambda i=i: calls.append(f"{name}{i}") for i in range(steps)], rows=steps)

    times = race([contender("a", 2), contender("b", 3)], rounds=2)
    assert calls[:2] == ["a0", "b0"]  # warm-up
    first, second = calls[2:7], calls[7:]
    assert first == ["a0", "b0", "b1", "a1", "b2"]
    assert second == ["b0", "a0", "a1", "b1", "b2"]  # the other goes first
    assert [len(times.seconds[name]) for name in "ab"] == [2, 2]


def test_a_contender_can_warm_up_with_all_its_steps() -> None:
    calls: list[int] = []
    race([Contender("a", [lambda: calls.append(0), lambda: calls.append(1)], rows=2, warm=None)], rounds=1)
    assert calls == [0, 1, 0, 1]


def test_a_ratio_is_the_median_of_rounds_not_a_ratio_of_medians() -> None:
    # the machine is ten times slower in the first round, for both
    times = Times({"a": 10, "b": 20}, {"a": [10.0, 1.0, 1.0], "b": [40.0, 4.0, 5.0]})
    assert times.rates("a") == [1, 10, 10]
    assert times.ratio("a", "b") == 2


def test_a_peer_counts_in_its_faster_dtype() -> None:
    rows = {"PEFT, bf16": 8.0, "PEFT, fp32": 8.0}
    assert Times(rows, {"PEFT, bf16": [1.0, 2.0], "PEFT, fp32": [2.0, 4.0]}).faster("PEFT") == "PEFT, bf16"
    assert Times(rows, {"PEFT, bf16": [3.0, 6.0], "PEFT, fp32": [2.0, 4.0]}).faster("PEFT") == "PEFT, fp32"


@pytest.mark.parametrize("name", ["training_speed", "t5_training_speed", "evaluation_speed", "many_tasks", "memory"])
def test_every_comparison_with_a_peer_runs_it_in_both_dtypes(name: str) -> None:
    text = Path(harness.__file__).with_name(f"{name}.py").read_text("utf-8")
    assert "DTYPES" in text
    assert name == "memory" or ".faster(" in text


@pytest.mark.parametrize("names", [["a", "a"], []])
def test_a_race_wants_different_names(names: list[str]) -> None:
    with pytest.raises(ValueError, match="different names"):
        race([Contender(name, [lambda: None], rows=1) for name in names], rounds=1)


def made(ratio: float, better: str = "higher") -> dict[str, Any]:
    entries = [{"name": "ours", "ratio": ratio}, {"name": "PEFT", "ratio": 1.0}, {"name": "PEFT fp32", "ratio": ratio}]
    return {"question": "q", "tables": [{"title": "t", "better": better, "against": "PEFT", "entries": entries}]}


@pytest.mark.parametrize(
    ("now", "then", "better", "worse"),
    [(7, 10, "higher", 0), (6, 10, "higher", 1), (1.4, 1, "lower", 0), (1.6, 1, "lower", 1), (0.2, 1, "lower", 0)],
)
def test_only_what_is_worse_than_the_tolerance_is_a_regression(
    now: float, then: float, better: str, worse: int
) -> None:
    lines, compared = check.regressions([made(now, better)], [made(then, better)], 0.35)
    assert (len(lines), compared) == (worse, 1)  # neither the yardstick nor another's way counts


def test_check_ends_with_an_error_where_something_regressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"processor": "one"}
    committed = tmp_path / "speed.json"
    committed.write_text(json.dumps({"answers": [{**made(10), "machine": {"processor": "another"}}]}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "q.json").write_text(json.dumps({**made(2), "machine": machine}))
    call = ["check", "--out", str(tmp_path / "out"), "--committed", str(committed)]
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as stopped:
        check.main()
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "worse: q, t: ours is 2 × PEFT; it was 10" in said.out
    assert "Committed on another, this is one" in said.err
    monkeypatch.setattr(sys, "argv", [*call, "--tolerance", "0.9"])
    with pytest.raises(SystemExit) as stopped:
        check.main()
    assert stopped.value.code == 0


def test_the_report_tells_which_goals_were_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Report("startup", {"rounds": 1})
    answer.add_sizes("start-up", {"python, nothing": [0.01], "attempt --help": [0.2, 0.4, 0.3]}, "python, nothing", "s")
    answer.goal("help", 0.3, at_most=0.3)
    answer.goal("list", 0.5, at_most=0.3)
    monkeypatch.setattr(sys, "argv", ["startup", "--data-dir", "/a/place/of/mine", "--out", "/another"])
    answer.finish(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "--out", str(tmp_path), "--to", str(tmp_path / "docs")])
    report.main()
    page = (tmp_path / "docs" / "speed.md").read_text("utf-8")
    assert "Goals: 1 of 2 met. Not met:\n\n- Start-up: list: 0.5, wanted at most 0.3" in page
    assert "| attempt --help | 0.3 | 0.2 to 0.4 | 30.00 |" in page
    assert "/a/place" not in page
    assert "--data-dir ROWS" in page
    kept = json.loads((tmp_path / "docs" / "speed.json").read_text("utf-8"))["answers"]
    assert [a["question"] for a in kept] == ["startup"]


def test_every_script_has_its_place_in_the_report_and_in_make_bench() -> None:
    folder = Path(harness.__file__).parent
    scripts = {
        file.stem
        for file in folder.glob("*.py")
        if "add_argument" in file.read_text() or "arguments(" in file.read_text()
    }
    # these have pages of their own, or tell of the host of a GPU alone
    scripts -= {"harness", "check", "report", "cell_path", "registry_scale", "host_cost", "host_time"}
    scripts -= {"peft_server", "starters"}  # `serving` starts the one; the other writes a card
    # the proof has a protocol, a page and a shell script of its own
    scripts = {name for name in scripts if name != "proof" and not name.startswith("proof_")}
    makefile = (folder.parent / "Makefile").read_text()
    assert scripts == set(report.QUESTIONS)
    assert f"BENCHES := {' '.join(report.QUESTIONS)}\n" in makefile


def test_the_exponent_of_a_power() -> None:
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_a_page_holds_one_answer_a_command(tmp_path: Path) -> None:
    page = tmp_path / "bank.md"
    for command, rate in (("first", 1.0), ("second", 2.0), ("first", 3.0)):
        made = Report("bank", {"backbone": "tiny"})
        made.add_race(f"table of {command}", Times({"a": rate}, {"a": [1.0]}), "a")
        answer = json.loads(made.save(tmp_path / "out").read_text())
        bank.write_page(page, {**answer, "command": command})
    answers = json.loads((tmp_path / "bank.json").read_text())["answers"]
    assert [(one["command"], one["tables"][0]["entries"][0]["median"]) for one in answers] == [
        ("second", 2.0),
        ("first", 3.0),
    ]
    assert page.read_text().count("table of first") == 1


def test_a_race_is_timed_by_the_clock_it_is_given() -> None:
    ticks = iter(range(100))
    times = race([Contender("a", [lambda: next(ticks)], rows=6)], rounds=1, clock=lambda: float(next(ticks)))
    assert times.rates("a") == [3.0]  # the step itself takes a tick, and the clock one
