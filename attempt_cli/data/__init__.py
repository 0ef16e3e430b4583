"""Tasks as data: where rows come from, how they become text, and how they are split, sampled and scored."""
