"""Prompts on the Hugging Face hub: the repository that is pushed, its model card, and what is pulled."""
