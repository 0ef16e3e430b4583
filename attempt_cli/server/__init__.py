"""Serves the prompts and compositions of a registry on one backbone, over HTTP."""
