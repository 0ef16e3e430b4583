"""Prompts in the formats of other tools: what leaves the registry, and what comes into it."""
