#!/bin/bash
# The commands of a user, end to end, on the device. cli.sh BACKBONE DATA OUT [device] [steps]
B=$1; DATA=$2; OUT=$3; D=${4:-cuda}; S=${5:-300}
A="python3 -m attempt_cli --registry /tmp/r --data-dir $DATA"; P="python3 -m attempt_cli --registry /tmp/r2 --data-dir $DATA"
say() { echo; echo "\$ ${*//python3 -m attempt_cli/attempt}"; local t=$(date +%s.%N); "$@" 2>&1 | tail -${LINES_KEPT:-14}; local c=${PIPESTATUS[0]}; echo "   exit $c, $(python3 -c "print(round($(date +%s.%N)-$t,1))") s"; }
rm -rf /tmp/r /tmp/r2
T="--backbone $B --device $D --steps $S --eval-every $((S/3)) --eval-rows 200"
say $A train-source sst2 $T --train-limit 4000 --name sst2
say $A train-source rte $T --name rte-before --placement before
say $A train-target rte --sources sst2 $T --name rte
# killed and gone on with: the same bits?
$P train-source sst2 $T --train-limit 4000 --name sst2 > /tmp/killed.log 2>&1 & victim=$!
sleep ${KILL_AFTER:-14}; kill -TERM $victim; wait $victim; echo "   stopped with exit $?"; tail -3 /tmp/killed.log
say $P train-source sst2 $T --train-limit 4000 --name sst2 --resume
for R in /tmp/r /tmp/r2; do python3 - $R <<'PY'
import sys; from attempt_registry import Registry; from pathlib import Path
r = Registry.open(Path(sys.argv[1])); p = r.prompt("sst2"); print("   ", sys.argv[1], p.ref, p.sha256[:16], {k: p.numbers.get(k) for k in ("seconds", "first_loss", "last_loss", "validation", "peak_memory", "padding")})
PY
done
say $A eval --tasks rte --prompt none --prompt rte-before --composition rte --backbone $B --device $D
say $A eval --tasks sst2 --prompt sst2 --backbone $B --device $D
say $A train-source rte $T --name big --batch-size auto --placement before
say $A train-source rte $T --name twice --placement before --gradient-checkpointing
say $A fewshot -k 16 --tasks rte --sources sst2 --steps 60 --seeds 2 --limit 200 --backbone $B --device $D
echo "It was a joy from start to end." > /tmp/one.txt; say $A predict sst2 /tmp/one.txt --backbone $B --device $D
cp -r /tmp/r/registry.db $OUT/ 2>/dev/null; true
