#!/usr/bin/env bash
# The prompt before the input or after it: five tasks, equal steps, rows and seeds; see docs/results/placement.md.
# Needs real rows in $ATTEMPT_DATA; SEEDS, STEPS and TASKS make it smaller.
set -euo pipefail
folder=${1:?usage: placement.sh FOLDER}
export ATTEMPT_REGISTRY=$folder/registry ATTEMPT_BACKBONE=${ATTEMPT_BACKBONE:-smollm2-135m}
mkdir -p "$folder"
for seed in ${SEEDS:-0 1}; do
  for task in ${TASKS:-sst2 cola mrpc qnli rte}; do
    for placement in after before; do
      name=$task-$placement-$seed
      [ -s "$folder/$name.eval.json" ] && continue
      attempt --format json train-source "$task" --placement "$placement" --name "$name" --seed "$seed" \
        --steps "${STEPS:-150}" --batch-size 8 --eval-every 0 --train-limit 2000 --max-length 128 \
        >"$folder/$name.train.json"
      attempt --format json eval --tasks "$task" --prompt "$name" --limit 400 --max-length 128 \
        >"$folder/$name.part" && mv "$folder/$name.part" "$folder/$name.eval.json"
    done
  done
done
