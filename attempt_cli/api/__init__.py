"""The public Python interface; `import attempt_cli` offers all of it."""
