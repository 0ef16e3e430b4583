"""Tasks as data: where rows come from, how they become text, how they are split, sampled and scored."""
