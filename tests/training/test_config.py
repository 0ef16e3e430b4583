"""Settings: bounds, presets, the budget and the learning rate's way."""

from __future__ import annotations

import pytest

from attempt_cli.errors import AttemptError
from attempt_cli.training.config import DEFAULT_STEPS, TrainingConfig, make_config


def test_the_defaults_are_those_of_rms_units() -> None:
    config = make_config(None)
    assert (config.units, config.prompt_length, config.batch_size) == ("rms", 20, 16)
    assert (config.learning_rate, config.attention_learning_rate) == (0.03, 0.01)
    assert config.total_steps(1000) == DEFAULT_STEPS == 500


def test_the_paper_s_settings() -> None:
    config = make_config("paper", method="attempt")
    assert config.prompt_length == 100
    assert config.attention_rank == 100
    assert config.units == "raw"
    assert config.temperature is None  # d·e in raw units
    assert (config.learning_rate, config.attention_learning_rate) == (0.3, 0.3)
    assert config.weight_decay == 1e-5
    assert config.learning_rate_factor(499, 20_000) == 1 > config.learning_rate_factor(498, 20_000)  # 500 steps
    assert config.learning_rate_factor(16, 160) == 1  # and fewer where 500 would outlast the training (CB)
    assert config.rows_per_step() == 32
    assert (config.epochs, config.steps) == (10, None)


def test_what_is_given_replaces_a_preset() -> None:
    config = make_config("paper", batch_size=16, accumulate=2, epochs=5.0, learning_rate=None)
    assert (config.batch_size, config.accumulate, config.epochs) == (16, 2, 5)
    assert config.learning_rate == 0.3
    assert config.rows_per_step() == 32
    steps = make_config("paper", steps=7)
    assert (steps.steps, steps.epochs) == (7, None)
    assert steps.total_steps(10_000) == 7


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(AttemptError, match="no preset named 'papier'") as failure:
        make_config("papier")
    assert "paper" in str(failure.value.hint)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(AttemptError) as failure:
        make_config(None, batch_size=0, learning_rate=-1.0, prompt_length=0, patience=0, seed=-1, units="miles")
    lines = failure.value.message.splitlines()
    assert lines[0] == "these settings cannot be used:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "--prompt-length",
        "--batch-size",
        "--learning-rate",
        "--seed",
        "--units",
        "--patience",
    ]
    assert "got 0" in lines[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"epochs": 0.0},
        {"accumulate": 0},
        {"weight_decay": -1e-9},
        {"warmup_steps": -1},
        {"clip_norm": 0.0},
        {"attention_learning_rate": 0.0},
        {"attention_rank": 0},
        {"temperature": 0.0},
        {"max_length": 0},
        {"max_tokens": 0},
        {"eval_every": -1},
        {"eval_rows": 0},
        {"seed": 2**63},  # the registry and torch count seeds in 64 bits
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"epochs": float("inf")},
        {"temperature": float("inf")},
        {"method": "hyperformr"},
        {"stepps": 3},
    ],
)
def test_a_setting_out_of_bounds_is_refused_before_anything_runs(settings: dict[str, object]) -> None:
    with pytest.raises(AttemptError, match="these settings cannot be used"):
        make_config(None, **settings)


def test_steps_and_epochs_exclude_each_other() -> None:
    with pytest.raises(AttemptError, match="give --steps or --epochs, not both"):
        make_config(None, steps=3, epochs=1.0)


@pytest.mark.parametrize(
    ("epochs", "rows", "processes", "steps"),
    [
        (1.0, 40, 1, 5),
        (1.0, 41, 1, 6),  # a ragged last batch is a step of its own
        (2.0, 41, 1, 12),
        (0.5, 40, 1, 3),
        (1.0, 40, 2, 3),
        (0.001, 40, 1, 1),
    ],
)
def test_epochs_become_steps(epochs: float, rows: int, processes: int, steps: int) -> None:
    assert TrainingConfig(epochs=epochs, batch_size=4, accumulate=2).total_steps(rows, processes) == steps


def test_the_learning_rate_rises_and_falls_in_straight_lines() -> None:
    config = TrainingConfig(warmup_steps=4)
    factors = [config.learning_rate_factor(step, 12) for step in range(12)]
    assert factors == [0.25, 0.5, 0.75, 1.0, *[(12 - step) / 8 for step in range(4, 12)]]
    assert config.learning_rate_factor(12, 12) == 0


def test_the_warm_up_is_a_tenth_of_the_steps_and_never_more_than_the_paper_s() -> None:
    config = TrainingConfig()
    assert config.learning_rate_factor(0, 100) == 0.1
    assert config.learning_rate_factor(9, 100) == config.learning_rate_factor(10, 100) == 1
    assert config.learning_rate_factor(499, 10_000) == 1
    assert config.learning_rate_factor(0, 5) == 1  # too few steps to warm up
    assert TrainingConfig(warmup_steps=0).learning_rate_factor(0, 100) == 1
    # a warm-up longer than the training (the paper's 500 steps on a small task) climbs to the end
    assert TrainingConfig(warmup_steps=500).learning_rate_factor(159, 160) == 160 / 500
