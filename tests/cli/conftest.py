"""The tiny backbone and `attempt …` in processes of its own, as the tests of training have them."""

from tests.training.conftest import attempt, llama

__all__ = ["attempt", "llama"]
