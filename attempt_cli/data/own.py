"""A task straight from files: `--train-file reviews.csv --input "{text}" --label sentiment`."""
