"""The same tiny backbone and one thread as the tests of training."""

from tests.training.conftest import attempt, backbone, llama, one_thread

__all__ = ["attempt", "backbone", "llama", "one_thread"]
