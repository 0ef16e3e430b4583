"""ATTEMPT: multi-task tuning of a frozen language model by attentional mixtures of soft prompts."""

__version__ = "0.1.0"
