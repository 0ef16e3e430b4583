"""Soft prompts and nothing else: ATTEMPT as in its paper, with all variants, and two other parametrisations.

`PromptMixture` is prompt tuning and ATTEMPT (equations 1 to 5), `SharedPrompt` is multitask prompt tuning,
`DecomposedPrompt` is decomposed prompt tuning. Each is a `PromptModule`, and the rest of the code knows no more of a
method.
"""

from attempt_cli.method.attention import (
    COSINE_TEMPERATURE,
    PromptAttention,
    Reads,
    paper_temperature,
    rms_temperature,
)
from attempt_cli.method.decomposed import DecomposedPrompt, decomposed_shape
from attempt_cli.method.mixture import Level, PromptMixture, constant_weights, prompt_norms, scaled_to
from attempt_cli.method.module import BuildInputs, PromptModule
from attempt_cli.method.parameters import attempt_parameters, dept_parameters, mpt_parameters, prompt_tuning_parameters
from attempt_cli.method.pooling import pool_input, pool_prompts
from attempt_cli.method.shared import SharedPrompt

__all__ = [
    "COSINE_TEMPERATURE",
    "BuildInputs",
    "DecomposedPrompt",
    "Level",
    "PromptAttention",
    "PromptMixture",
    "PromptModule",
    "Reads",
    "SharedPrompt",
    "attempt_parameters",
    "constant_weights",
    "decomposed_shape",
    "dept_parameters",
    "mpt_parameters",
    "paper_temperature",
    "pool_input",
    "pool_prompts",
    "prompt_norms",
    "prompt_tuning_parameters",
    "rms_temperature",
    "scaled_to",
]
