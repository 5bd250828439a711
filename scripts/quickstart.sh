#!/usr/bin/env bash
# From a fresh clone to text in a few minutes: packages, build, import of the demo checkpoint, four ranks.
# Prints the commands it runs, so that you can run them again with models of your own.
set -euo pipefail
cd "$(dirname "$0")/.."

checkpoint=tests/data/demo-gptj
store=build/demo-store
stagecoach=build/release/bin/stagecoach

run() {
  { printf '\n$'; printf ' %q' "$@"; echo; } >&2
  "$@"
}

run scripts/install_deps.sh
run cmake --preset release --log-level=WARNING
run cmake --build --preset release --target stagecoach --parallel "$(nproc)"

if [[ -f $store/manifest.json ]] && run "$stagecoach" verify "$store"; then
  echo "$store is there and intact." >&2
else
  # Whatever lies there without passing verify is a leftover in our own build folder.
  rm -rf "$store"
  run "$stagecoach" import "$checkpoint" "$store"
fi

mpirun=(mpirun)
if ((EUID == 0)); then
  # Open MPI asks root twice; in a container root is all there is.
  mpirun=(env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun)
fi
# Four ranks, each with a slice of the layers. --oversubscribe: more ranks than cores is fine here;
# --bind-to none: a rank's threads may use every core, not just one.
run "${mpirun[@]}" -np 4 --oversubscribe --bind-to none \
  "$stagecoach" generate --store "$store" --prompt "And the king said unto" \
  --temperature 0.7 --top-k 40 --seed 1 --max-new-tokens 60
