"""How fast, how large and how scalable, each question as one script; see README.md."""
