#!/usr/bin/env bash
# Installs packages, builds, and runs the tests; exits with ctest's own code.
#
#   scripts/test.sh                          the whole suite, preset release
#   scripts/test.sh debug|asan|tsan          that preset; sanitizers leave out what starts other processes
#   STAGECOACH_SANITIZERS=1 scripts/test.sh  the whole suite, then asan and tsan
#   scripts/test.sh PRESET -R REGEX …        what follows the preset goes to ctest
#
# Tests on real checkpoints run when STAGECOACH_EXTERNAL_DATA names a folder that has them.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."

preset=release
if (($# > 0)) && [[ $1 != -* ]]; then
  preset=$1
  shift
fi
case $preset in
  release | debug | asan | tsan) ;;
  *)
    echo "test.sh: no preset '$preset'; expected release, debug, asan or tsan" >&2
    exit 2
    ;;
esac

presets=("$preset")
if [[ $preset == release && ${STAGECOACH_SANITIZERS:-0} == 1 ]]; then
  presets+=(asan tsan)
fi

if ((EUID == 0)); then
  # Open MPI refuses to run as root, which is all that a container has.
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
if [[ -n ${STAGECOACH_EXTERNAL_DATA:-} ]]; then
  # Absolute, because tests run in other folders.
  STAGECOACH_EXTERNAL_DATA=$(cd "$called_from" && realpath "$STAGECOACH_EXTERNAL_DATA")
  export STAGECOACH_EXTERNAL_DATA
fi

scripts/install_deps.sh
for preset in "${presets[@]}"; do
  cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel "$(nproc)"
  selection=()
  case $preset in
    # Open MPI's libraries leak and race by their own lights, and lint does not depend on the build.
    asan | tsan) selection=(-LE '^(mpi|fault|lan|lint)$') ;;
  esac
  # A failure ends the script here (set -e) with ctest's code, so that its summary is the last thing said.
  ctest --preset "$preset" --parallel "$(nproc)" "${selection[@]}" "$@" </dev/null
done
