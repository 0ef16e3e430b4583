"""Frozen language models behind one face."""
