"""The public functions of the library; `attempt_cli` itself offers them under its own name."""
