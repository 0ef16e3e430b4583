"""The search for learning rates: as many tries for every method, and validation rows alone choose."""

from __future__ import annotations

from attempt_cli.experiments.cells import Cell, CellSpec
from attempt_cli.experiments.summary import summarise
from attempt_cli.experiments.tuning import TRIED, best_of_each, with_rates
from attempt_cli.training.config import TrainingConfig


def cell(method: str, rate: float | None, seed: int, validation: float | None, score: float, task: str = "cb") -> Cell:
    swept = None if rate is None else {"learning_rate": rate}
    found = Cell(task, method, seed, score, (0.0, 1.0), 10, f"{method}{seed}", 5, moved=0.25, backbone="tiny")
    return Cell(**{**vars(found), "swept": swept, "validation_score": validation})


def test_every_method_has_as_many_tries_of_all_rates_that_it_reads() -> None:
    methods = ("none", "prompt-tuning", "attempt", "pt-moe", "lora")
    found = with_rates([CellSpec(("cb",), method, 0, "tiny") for method in methods])
    read = {method: [dict(spec.swept) for spec in found if spec.method == method] for method in methods}
    assert read["none"] == [{}]  # nothing is trained, and nothing tried
    assert {method: len(tries) for method, tries in read.items() if method != "none"} == dict.fromkeys(methods[1:], 3)
    assert [list(tries[0]) for tries in read.values()] == [
        [],
        ["learning_rate"],
        ["learning_rate", "attention_learning_rate"],
        ["attention_learning_rate"],
        ["weight_learning_rate"],
    ]
    defaults = TrainingConfig()
    assert TRIED[1] == {name: getattr(defaults, name) for name in TRIED[1]}


def test_the_validation_rows_choose_for_each_task_and_method_and_the_test_rows_do_not() -> None:
    cells = [
        cell("none", None, 0, None, 0.5),
        *(cell("prompt-tuning", 0.01, seed, 0.6, 0.9) for seed in (0, 1)),  # better on the test rows, by chance
        *(cell("prompt-tuning", 0.03, seed, 0.8, 0.7) for seed in (0, 1)),
        *(cell("prompt-tuning", 0.01, seed, 0.8, 0.4, "rte") for seed in (0, 1)),
        *(cell("prompt-tuning", 0.03, seed, 0.6, 0.6, "rte") for seed in (0, 1)),
    ]
    chosen = best_of_each(cells, {})
    assert [(one.task, one.method, one.swept, one.score) for one in chosen] == [
        ("cb", "none", None, 0.5),
        *[("cb", "prompt-tuning", {"learning_rate": 0.03}, 0.7)] * 2,
        *[("rte", "prompt-tuning", {"learning_rate": 0.01}, 0.4)] * 2,
    ]
    rows = {(row.task, row.method): row for row in summarise(chosen)}
    assert rows["rte", "prompt-tuning"].swept == {"learning_rate": 0.01}
    assert rows["cb", "prompt-tuning"].moved == 0.25
    # rates at which a seed failed are chosen only where all have failed seeds
    failed = {CellSpec(("cb",), "prompt-tuning", 2, "tiny", swept=(("learning_rate", 0.03),)): "loss is NaN"}
    assert {one.score for one in best_of_each(cells, failed) if one.task == "cb"} == {0.5, 0.9}
    assert {one.score for one in best_of_each(cells, failed) if one.task == "rte"} == {0.4}
