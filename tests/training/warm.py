"""What the fork server does once instead of every command: transformers compiles a thousand patterns."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # keeps the patterns of all architectures
