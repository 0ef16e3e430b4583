"""The shapes of known backbones against the models' published sizes, without weights."""

from __future__ import annotations

from attempt_cli.backbones.shapes import backbone_shapes

# the models' own cards and checkpoints
PUBLISHED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_parameters_are_those_of_the_models() -> None:
    assert {name: shape.parameters for name, shape in backbone_shapes().items()} == PUBLISHED
