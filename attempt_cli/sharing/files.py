"""The files of a repository with a prompt: what a push writes and all that a pull reads."""

from __future__ import annotations

from attempt_cli.exchange.folders import PROVENANCE
from attempt_registry.adapters import CONFIG, TENSORS

BUNDLE = "prompt.attempt"  # everything that another registry needs
ADAPTER = (CONFIG, TENSORS)  # what PEFT reads, where the prompt can be expressed so
CARD = "README.md"
OURS = frozenset({BUNDLE, PROVENANCE, CARD, *ADAPTER})
# what is in a repository that nobody has put anything into
FROM_THE_HUB = frozenset({".gitattributes", CARD})
