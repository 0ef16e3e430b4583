"""The page of the proof: claims are decided by the runs that there are."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks import proof
from benchmarks.proof_balance import balanced, log_odds
from benchmarks.proof_claims import FEW, Part, claims, compare, complete, power_factor, together

TASKS = ["a", "b"]


def scores(mean: float, seeds: int = 6, spread: float = 0.2, k: int = 16) -> dict[tuple[str, int, int], float]:
    draw = random.Random(round(100 * mean))
    return {(task, k, seed): mean + draw.uniform(-spread, spread) for task in TASKS for seed in range(seeds)}


def test_a_part_is_decided_where_its_whole_interval_is_on_one_side() -> None:
    assert Part("x", 6.0, 1.0, 5).verdict == "confirmed"
    assert Part("x", 4.0, 0.9, 5).verdict == "refuted"
    assert Part("x", 5.5, 1.0, 5).verdict == Part("x", 4.5, 1.0, 5).verdict == "open"
    assert Part("x", 50.0, None, 5).verdict == "open"  # one seed shows nothing
    assert str(Part("x", 6.0, 1.0, 5)) == "x: +6.0 ± 1.0 (confirmed)"
    assert str(Part("won", 80.0, None, 80, " %")) == "won: 80.0 % (open)"


def test_one_refuted_part_refutes_a_claim() -> None:
    sure, open_, wrong = Part("x", 9, 1, 0), Part("x", 0, 1, 0), Part("x", -9, 1, 0)
    assert together([sure, sure], 2) == "confirmed"
    assert together([sure, sure], 3) == "open"  # a part was not run
    assert together([sure, open_], 2) == "open"
    assert together([sure, open_, wrong], 4) == "refuted"
    assert together([], 2) == "not run"


def test_few_seeds_could_have_shown_large_differences_only() -> None:
    # the power of a t-test, by drawing: known seeds, deviation 1, the mean at so many standard errors
    draw = np.random.default_rng(0)
    for seeds in (3, 5, 20):
        drawn = draw.normal(power_factor(seeds) / math.sqrt(seeds), 1, (20_000, seeds))
        assert (ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.015)
    assert power_factor(3) > 2 * 2.8
    assert power_factor(1000) == pytest.approx(2.8, abs=0.02)


def test_only_seeds_that_both_have_on_every_task_are_compared() -> None:
    ours, theirs = scores(70.0), scores(60.0)
    del ours["a", 16, 0], theirs["b", 16, 5]
    found = compare({"attempt": ours, "spot": theirs}, "attempt", "spot", 16, TASKS)
    assert found is not None
    assert (found.seeds, found.cells, found.won) == (4, 8, 100.0)
    assert found.difference == pytest.approx(10, abs=0.3)
    assert complete(ours, TASKS, 16) == {1, 2, 3, 4, 5}
    assert compare({"attempt": ours}, "attempt", "spot", 16, TASKS) is None
    assert compare({"attempt": ours, "spot": theirs}, "attempt", "spot", 4, TASKS) is None


def test_tasks_that_one_of_two_lacks_are_not_compared() -> None:
    ours, theirs = scores(70.0), {place: score for place, score in scores(60.0).items() if place[0] == "b"}
    found = compare({"attempt": ours, "icl": theirs}, "attempt", "icl", 16, TASKS)
    assert found is not None
    assert (found.seeds, found.cells, [*found.tasks]) == (6, 6, ["b"])
    claim = claims({"attempt": ours, "icl": theirs}, TASKS, {}, {}, None)[-1]
    assert claim.found.startswith("in-context learning, k = 16, 1 task, 6 seeds: -")
    whole, part = proof.scores_at({"attempt": ours, "icl": theirs}, 16, TASKS)[2:4]
    assert whole.split(" | ")[4].startswith("**69.9")
    assert part.endswith("| – |")
    assert part.split(" | ")[2] == "–"


def at_every_k(mean: float) -> dict[tuple[str, int, int], float]:
    return {place: score for k in FEW for place, score in scores(mean, k=k).items()}


def decided(**means: float) -> dict[int, str]:
    few = {name.replace("_", "-"): at_every_k(mean) for name, mean in means.items()}
    return {one.number: one.verdict for one in claims(few, TASKS, {}, {}, None)}


def test_claims_follow_the_scores() -> None:
    names = ["attempt", "prompt_tuning", "spot", "attempt_words", "attempt_random", "spot_random", "spot_t", "source"]
    good = dict(zip(names, [70.0, 60.0, 69.0, 68.9, 69.5, 64.0, 65.0, 66.0], strict=True))
    assert decided(**good) == {
        1: "confirmed",
        2: "confirmed",
        3: "confirmed",
        4: "not run",
        5: "not run",
        6: "not run",
        7: "not run",
    }
    some = {name.replace("_", "-"): scores(mean) for name, mean in good.items()}
    assert {one.number: one.verdict for one in claims(some, TASKS, {}, {}, None)}[2] == "open"  # k = 4, 32 are due
    assert decided(**{name: mean for name, mean in good.items() if name != "spot_t"})[2] == "open"
    assert decided(**good | {"prompt_tuning": 68.0})[1] == "refuted"
    assert decided(**good | {"attempt_words": 66.0})[2] == "refuted"
    assert decided(**good | {"source": 75.0})[3] == "refuted"
    assert decided(**good | {"source": 71.0})[3] == "refuted"
    assert decided(**good, attempt_m=72.0, lora=71.0) | {7: "answered in part", 5: "confirmed"} == decided(
        **good, attempt_m=72.0, lora=71.0
    )


def test_few_seeds_confirm_no_claim_that_nothing_was_lost() -> None:
    noisy = {"attempt": scores(69.5, seeds=3, spread=9), "source": scores(70.0, seeds=3, spread=9)}
    assert claims(noisy, TASKS, {}, {}, None)[2].verdict == "open"


def test_many_rows_need_few_parameters_too() -> None:
    rows = {"attempt": scores(80.0, k=2000), "lora": scores(80.2, k=2000)}
    few = {"attempt": scores(70.0)}
    for of, verdict in ((4_000, "confirmed"), (40_000, "refuted")):
        found = claims(few, TASKS, rows, {"attempt": of, "lora": 100_000}, None)
        assert found[3].verdict == verdict, found[3]


def write_runs(folder: Path, tasks: Sequence[str] = TASKS, k: int = 16, **means: float) -> None:
    draw = random.Random(0)
    for name, mean in means.items():
        method = name.replace("_", "-")
        cells = [
            {"task": task, "method": method, "k": k, "seed": seed, "score": mean + draw.uniform(0, 0.05)}
            | {"steps": 100, "trained_parameters": 5760, "extra_tokens": 10, "training_seconds": 8.0}
            for task in tasks
            for seed in range(3)
        ]
        for place in (folder / "fewshot" / f"{method}-{k}", folder / "tune" / f"{name}-0.1"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "table3.json").write_text(json.dumps({"cells": cells}))


def test_a_larger_backbone_has_its_own_verdicts_on_the_tasks_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, larger, out, readme = (tmp_path / name for name in ("small", "larger", "out", "README.md"))
    out.mkdir()
    readme.write_text("\n".join(proof.MARKS), "utf-8")
    (small / "each").mkdir(parents=True)
    for number, task in enumerate(TASKS):
        scored = {"no prompt": 0.5, "starter-x@1": 0.6 + 0.1 * number, "starter-y@1": 0.7 - 0.1 * number}
        evaluations = [{"task": task, "model": model, "score": score} for model, score in scored.items()]
        (small / "each" / f"{task}.json").write_text(json.dumps({"evaluations": evaluations}))
    write_runs(small, attempt=0.61, prompt_tuning=0.6, none=0.5)
    for k in FEW:
        write_runs(larger, k=k, attempt=0.8, prompt_tuning=0.6)
    write_runs(larger, [*TASKS, "c"], prompt_tuning=0.6)  # ATTEMPT has not come to this task yet
    monkeypatch.setattr("sys.argv", ["proof", str(small), str(out), "--larger", str(larger), "--readme", str(readme)])
    proof.main()
    shown = readme.read_text("utf-8")
    assert "| | claim | SmolLM2-135M | Qwen2.5-Coder-0.5B |".replace("| |", "|  |") in shown
    assert "in 80 % of the cells | **refuted** | **confirmed** |" in shown
    text = (out / "proof.md").read_text("utf-8")
    assert "## Qwen2.5-Coder-0.5B, k = 16" in text
    assert "| x | 60.0 | 70.0 | **65.0** |" in text
    assert "| mean of the sources | 65.0 | 65.0 | **65.0** |" in text
    assert "| the best on the test rows | 70.0 | 70.0 | **70.0** |" in text
    assert (out / "proof-larger.png").stat().st_size > 1000
    assert "Qwen2.5-Coder-0.5B,prompt-tuning,c,16,0" in (out / "proof.csv").read_text("utf-8")


def test_a_k_of_fewer_tasks_has_its_own_table_and_the_picture_by_k_what_all_have(tmp_path: Path) -> None:
    write_runs(tmp_path, attempt=0.7, prompt_tuning=0.6)
    write_runs(tmp_path, ["b"], 4, attempt=0.65, prompt_tuning=0.6)
    runs = proof.runs_of("x", tmp_path)
    assert (runs.ks, runs.tasks, runs.at(4), runs.at(16), runs.most) == ([4, 16], TASKS, ["b"], TASKS, 16)
    lines, found = proof.few_shot(runs, tmp_path, tmp_path)
    assert {one.k: [*one.tasks] for one in found} == {4: ["b"], 16: TASKS}
    assert "| method | seeds | b | mean |" in lines
    assert "![x: scores by k](proof-k.png)" in lines
    assert (tmp_path / "proof-k.png").stat().st_size > 1000


def test_a_task_is_compared_over_its_own_seeds() -> None:
    ours, theirs = scores(70.0), scores(60.0)
    del ours["a", 16, 0], ours["a", 16, 1], ours["a", 16, 2]
    few = compare({"attempt": ours, "spot": theirs}, "attempt", "spot", 16, TASKS)
    assert few is not None
    assert few.seeds == 3
    own = [ours["b", 16, seed] - theirs["b", 16, seed] for seed in range(6)]
    assert few.tasks["b"][0] == pytest.approx(sum(own) / 6)


def test_where_others_win_is_told_after_holm() -> None:
    few = {"attempt": scores(70.0), "probe": scores(75.0), "icl": scores(60.0)}
    claim = claims(few, TASKS, {}, {}, None)[-1]
    assert "probe, k = 16, 2 tasks, 6 seeds: +5.1" in claim.found
    assert "above on a +5.0" in claim.found
    assert "(not after Holm)" not in claim.found
    assert "in-context learning, k = 16, 2 tasks, 6 seeds: -9.9" in claim.found
    assert claim.found.endswith("above on no task")
    flat = {(task, 16, seed): 70.0 for task in TASKS for seed in range(3)}
    few = {"attempt": flat, "probe": {place: score + 2 + place[2] for place, score in flat.items()}}
    # p is 0.035 on each of the two tasks
    assert claims(few, TASKS, {}, {}, None)[-1].found.endswith(
        "above on a +3.0 ± 2.5 (not after Holm), b +3.0 ± 2.5 (not after Holm)"
    )


def test_the_page_has_tables_pictures_and_the_readmes_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_runs(tmp_path, attempt=0.7, prompt_tuning=0.6, spot=0.68, none=0.5)
    write_runs(tmp_path / "many", k=500, attempt=0.8, prompt_tuning=0.75)
    (tmp_path / "many" / "fewshot").rename(tmp_path / "rows")
    out, readme = tmp_path / "out", tmp_path / "README.md"
    out.mkdir()
    readme.write_text(f"before\n{proof.MARKS[0]}\nyesterday\n{proof.MARKS[1]}\nafter\n", "utf-8")
    monkeypatch.setattr("sys.argv", ["proof", str(tmp_path), str(out), "--readme", str(readme)])
    proof.main()
    text = (out / "proof.md").read_text("utf-8")
    assert "| prompt tuning | 3 |" in text
    assert "ATTEMPT − prompt tuning" in text
    assert "scores from few to hundreds of rows](proof-rows-k.png)" in text
    assert all((out / name).stat().st_size > 1000 for name in ("proof.png", "proof-cost.png", "proof-rows-k.png"))
    shown = readme.read_text("utf-8")
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")
    assert "yesterday" not in shown
    for one in json.loads((out / "proof.json").read_text())["claims"]:
        assert f"| {one['number']} | {one['says']} | **{one['verdict']}** |" in shown


def test_the_readme_says_what_the_runs_decided() -> None:
    root = Path(proof.__file__).parents[1]
    report = json.loads((root / "docs" / "results" / "proof.json").read_text())
    readme = (root / "README.md").read_text("utf-8")
    larger = {one["number"]: one["verdict"] for one in report.get("larger", {}).get("claims", [])}
    for one in report["claims"]:
        more = f" **{larger[one['number']]}** |" if larger else ""
        assert f"| {one['number']} | {one['says']} | **{one['verdict']}** |{more}\n" in readme


def test_a_shift_of_the_odds_changes_no_balanced_score() -> None:
    labels = [1, 1, 0, 0, 1, 0]
    odds = [5.0, 1.0, 2.0, -3.0, 4.0, -1.0]  # one pair the wrong way round
    assert balanced(odds, labels) == balanced([one - 9 for one in odds], labels) == pytest.approx(4 / 6)
    assert balanced([*map(float, labels)], labels) == 1.0
    assert log_odds((0.2, 0.8)) == pytest.approx(1.386, abs=1e-3)
    assert log_odds((1.0, 0.0)) < -600  # a probability too small for its type


def test_what_prompts_know_is_told_apart_from_their_balance(tmp_path: Path) -> None:
    write_runs(tmp_path, attempt=0.61, prompt_tuning=0.6)
    place = tmp_path / "balance"
    place.mkdir()
    for task, auc in (("a", 0.6), ("b", 0.7)):
        cells = [
            {"method": method, "seed": seed, "score": 0.4, "auc": auc + gain, "balanced": 0.5, "larger": 0.8}
            for method, gain in (("attempt", 0.05), ("prompt-tuning", 0.0))
            for seed in range(3)
        ]
        (place / f"{task}.json").write_text(json.dumps(cells))
    lines = proof.knowledge(proof.runs_of("x", tmp_path), place)
    assert "| ATTEMPT | 65.0 | 75.0 | 70.0 | +5.0 | 40.0 | 50.0 |" in lines
    assert "| the larger class | 50.0 | 50.0 | 50.0 |  | 80.0 |  |" in lines
    assert proof.knowledge(proof.runs_of("x", tmp_path), tmp_path / "nowhere") == []
    # a seed that one task lacks counts for no method
    cells = [
        cell for cell in json.loads((place / "b.json").read_text()) if (cell["method"], cell["seed"]) != ("attempt", 1)
    ]
    cells += [{**cells[0], "seed": 7, "auc": 0.1}]
    (place / "b.json").write_text(json.dumps(cells))
    lines = proof.knowledge(proof.runs_of("x", tmp_path), place)
    assert any(line.startswith("| ATTEMPT | 65.0 |") and "| 70.0 | +5.0 |" in line for line in lines)


def test_a_score_that_was_written_to_two_decimals_ties_with_itself() -> None:
    ours = {("cb", 16, seed): 100 * (10 + seed) / 28 for seed in range(6)}
    theirs = {place: round(score, 2) for place, score in ours.items()}
    found = compare({"attempt": ours, "spot": theirs}, "attempt", "spot", 16, ["cb"])
    assert found is not None
    assert found.won == 50


def test_runs_of_another_machine_add_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, out = (tmp_path / name for name in ("first", "second", "out"))
    out.mkdir()
    write_runs(first, attempt=0.7, prompt_tuning=0.6, lora=0.75)
    write_runs(first, k=4, attempt=0.65, prompt_tuning=0.6)
    claim = {"mean": 1.5, "width": 1.0, "n": 20}
    changed = {"claims": {"the best source added": claim}, "table": ["| changed |"]}
    (first / "sources.json").write_text(json.dumps(changed))
    for folder in (first, second):
        (folder / "each").mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        evaluations = [{"task": task, "model": "starter-x@1", "score": 0.6}]
        (first / "each" / f"{task}.json").write_text(json.dumps({"evaluations": evaluations}))

    def run(folder: Path) -> str:
        monkeypatch.setattr("sys.argv", ["proof", str(folder), str(out)])
        proof.main()
        return (out / "proof.md").read_text("utf-8")

    before = run(first)
    (tmp_path / "nothing").mkdir()
    assert run(tmp_path / "nothing") == before
    with pytest.raises(SystemExit):
        run(tmp_path / "mistyped")
    for method, mean in (("attempt", 0.8), ("prompt-tuning", 0.6)):  # seeds 2 to 5: one of them a second time
        cells = [
            {"task": task, "method": method, "k": 16, "seed": seed, "score": mean}
            | {"steps": 100, "trained_parameters": 5760, "extra_tokens": 10, "training_seconds": 99.0}
            | {"dtype": "float32"}
            for task in TASKS
            for seed in range(2, 6)
        ]
        place = second / "fewshot" / method
        place.mkdir(parents=True)
        (place / "table3.json").write_text(json.dumps({"cells": cells}))
    fewer = {"claims": {"the best source added": {**claim, "n": 5}}, "table": ["| fewer"]}
    (second / "sources.json").write_text(json.dumps(fewer))
    after = run(second)
    assert "| ATTEMPT | 6 | 78.0 | 77.3 | **77.7** ± 3.8 |" in after
    assert "| ATTEMPT − prompt tuning | 4 | 2 | 3 | +4.7 ± 1.0" in after
    assert "| LoRA − prompt tuning | 16 | 2 | 3 | +16.0 ± 7.6" in after  # the second machine did not run it
    assert "| ATTEMPT | 100 | 5,760 | 10 | 8 |" in after  # seconds of another processor would not compare
    for kept in ("## Learning rates, on development tasks", "### Each source as it stands", "| changed |"):
        assert kept in after
    assert "the best source added, 20 compositions: +1.5 ± 1.0 (confirmed)" in after
    assert after.count("\n## ") == before.count("\n## ")
    with (out / "proof.csv").open(encoding="utf-8", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["method"] == "attempt" and row["k"] == "16"]
    assert {row["seed"] for row in lines if row["dtype"] == "float32"} == {"2", "3", "4", "5"}
    assert {row["seed"] for row in lines if row["dtype"] == ""} == {"0", "1"}  # a report of an earlier version
