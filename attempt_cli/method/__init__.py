"""ATTEMPT as the paper states it: soft prompts, the attention module G, and their mixture (equations 1 to 4)."""

from attempt_cli.method.attention import PromptAttention, paper_temperature, rms_temperature
from attempt_cli.method.mixture import PromptMixture
from attempt_cli.method.pooling import pool_input, pool_prompts

__all__ = ["PromptAttention", "PromptMixture", "paper_temperature", "pool_input", "pool_prompts", "rms_temperature"]
