#!/usr/bin/env bash
# Checks and times Stagecoach on a real NVIDIA card, on a machine that may have nothing but a driver and cuBLAS: no
# network, no compiler, none of the libraries that a build needs.
#
#   scripts/bench/cuda_card.sh --prepare [--architectures LIST]
#       where Stagecoach can be built: builds into build/card-tree, packs what runs elsewhere into build/card.tar.gz.
#       Architectures as in CMake ("80-real;90-real"); default: those that a build has anyway.
#   scripts/bench/cuda_card.sh [--out DIR] [--limit SECONDS] [--steps LIST]
#       where the card is, beside that archive: runs all steps, or those of a list ("card,bench"), one after the
#       other, whatever the others do. Results go to --out, else $OUT, else build/card-results: summary.txt,
#       summary.json, the lines of cuda_bench and of `time`, and each call's logs in an archive. Where a call may take no longer
#       than ten minutes, these three do it all:
#         --steps card,conformance,golden,bench
#         --steps card,probe,gptj,gpt3,streamed,ranks
#         --steps card,memcheck,racecheck
#
# Exit code 1 if a step failed. Steps that find no time left (--limit, default 560 s) say so and count as failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2

readonly archive=$PWD/build/card.tar.gz tree=build/card-tree
readonly all_steps=card,conformance,golden,bench,probe,gptj,gpt3,streamed,ranks,memcheck,racecheck
usage="usage: scripts/bench/cuda_card.sh --prepare [--architectures LIST] | [--out DIR] [--limit SECONDS] [--steps LIST]"

prepare=0 architectures="" out=${OUT:-build/card-results} limit=560 steps=$all_steps
while (($#)); do
  case $1 in
    --prepare) prepare=1 && shift ;;
    --architectures | --out | --limit | --steps)
      (($# >= 2)) || { echo "$usage" >&2 && exit 2; }
      declare "${1#--}=$2" && shift 2 ;;
    *) echo "$usage" >&2 && exit 2 ;;
  esac
done
[[ $limit =~ ^[0-9]+$ ]] || { echo "$usage" >&2 && exit 2; }
for step in ${steps//,/ }; do
  [[ ,$all_steps, == *,$step,* ]] || { echo "cuda_card: no step '$step'; expected some of $all_steps" >&2 && exit 2; }
done

# ---- Where Stagecoach is built

# Shared libraries of the programs, but for those that every Linux has (the older ones of here could stand in for newer
# ones there) and those that come with the driver and CUDA.
libraries_of() {
  ldd "$@" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u |
    grep -vE '/(ld-linux|lib(c|m|dl|rt|pthread|resolv|cuda|cublas|cublasLt|gcc_s|stdc\+\+))[-.0-9x_]*\.so'
}

# mpirun, libmpi and their components, which a few variables tell where they are: ranks_of below.
carry_mpi() {
  local into=$1 components libraries
  components=$(ompi_info --path pkglibdir --parsable 2>/dev/null | sed -n 's/^path:pkglibdir://p')
  [[ -d $components ]] || { echo "cuda_card: no Open MPI here: the step 'ranks' will be skipped" && return; }
  mkdir -p "$into/bin" "$into/lib" "$into/share" || return 1
  install "$(readlink -f "$(command -v mpirun)")" "$into/bin/mpirun" || return 1
  cp -r "$components" "$into/lib/components" || return 1
  cp -rL "$(ompi_info --path pkgdatadir --parsable | sed -n 's/^path:pkgdatadir://p')" "$into/share/openmpi" || return 1
  mapfile -t libraries < <(libraries_of "$into/bin/mpirun" "$into"/lib/components/mca_*.so "$tree/lib/stagecoach/stagecoach-mpi.so")
  install -m 644 "${libraries[@]}" "$into/lib/" || return 1
  local pmix
  for pmix in /usr/lib/*/pmix2; do
    [[ ! -d $pmix ]] || cp -r "$pmix" "$into/pmix" || return 1
  done
}

prepare_card() {
  # Line numbers for compute-sanitizer; the code stays the same.
  local options=(--preset release -B "$tree" -DCMAKE_CUDA_FLAGS=-lineinfo)
  [[ -z $architectures ]] || options+=("-DSTAGECOACH_CUDA_ARCHITECTURES=$architectures")
  cmake "${options[@]}" >/dev/null || return 1
  cmake --build "$tree" --target help | grep '^cuda_bench:' >/dev/null ||
    { echo "cuda_card: the CUDA Toolkit was not found: nothing to prepare" >&2 && return 1; }
  cmake --build "$tree" --target stagecoach conformance_backends golden_models cuda_bench || return 1
  local card=$tree/card program libraries
  rm -rf "$card" && mkdir -p "$card/bin" "$card/lib/stagecoach" || return 1
  for program in stagecoach conformance_backends golden_models cuda_bench; do
    install -s "$tree/bin/$program" "$card/bin/" || return 1
  done
  install -s "$tree"/lib/stagecoach/*.so "$card/lib/stagecoach/" || return 1
  cp -r tests/data/golden "$card/golden" || return 1
  carry_mpi "$card/mpi" || return 1
  mapfile -t libraries < <(libraries_of "$card"/bin/* "$card/lib/stagecoach/stagecoach-cuda.so")
  install -m 644 "${libraries[@]}" "$card/lib/" || return 1
  {
    echo "build $(git describe --always --dirty --abbrev=12 2>/dev/null)"
    echo "built with glibc $(getconf GNU_LIBC_VERSION | sed 's/glibc //'), architectures ${architectures:-of every build}"
  } >"$card/VERSION"
  tar -czf "$archive" -C "$tree" card || return 1
  echo "build/card.tar.gz: $(du -h "$archive" | cut -f1); take it along with scripts/"
}

if ((prepare)); then
  prepare_card
  exit
fi

# ---- Where the card is

[[ -f $archive ]] ||
  { echo "cuda_card: build/card.tar.gz is not there; make it with --prepare where Stagecoach can be built" >&2 && exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d "${TMPDIR:-/tmp}/stagecoach-card.XXXXXX") && mkdir "$work/logs" || exit 2
trap 'rm -rf "$work"' EXIT
card=$work/card
tar -xzf "$archive" -C "$work" || exit 2
: >"$work/steps.tsv"

# cuBLAS: where the loader finds it, or where toolkits and Python packages put it.
cublas_folder() {
  local folder
  ldconfig -p 2>/dev/null | grep 'libcublas\.so\.13' >/dev/null && return
  for folder in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
    $(python3 -c 'import site, sys; print(*site.getsitepackages())' 2>/dev/null | sed 's/ /\n/g' | sed 's/$/\/nvidia\/*\/lib/'); do
    [[ -e $folder/libcublas.so.13 ]] && echo "$folder" && return
  done
}
cublas=$(cublas_folder)
export STAGECOACH_MODULES=$card/lib/stagecoach STAGECOACH_CACHE=$work/cache
# For our programs alone: the machine's own have newer libraries of these names.
with_libraries() {
  LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${cublas:+$cublas:}$card/lib "$@"
}
stagecoach() { with_libraries "$card/bin/stagecoach" "$@"; }

find_sanitizer() {
  local path
  for path in "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
    /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
    [[ -x $path ]] && echo "$path" && return
  done
  return 1
}

left() { echo $((limit - SECONDS)); }

# step NAME BOUND COMMAND…: a line of steps.tsv (name, result, seconds, what it last said), a log of its own.
step() {
  local name=$1 bound=$2 begin=$SECONDS code result said
  shift 2
  [[ ,$steps, == *,${name%%.*},* ]] || return 0
  local log=$work/logs/$name.log
  if (($(left) < 15)); then
    printf '%s\t%s\t%d\t%s\n' "$name" "not run" 0 "no time left of $limit s" >>"$work/steps.tsv"
    echo "$name: not run, no time left" && return 0
  fi
  ((bound > $(left) - 5)) && bound=$(($(left) - 5))
  # In a shell of its own, so that the bound holds for functions too; and what they start ends with it.
  (
    set -m
    "$@" >"$log" 2>&1 &
    job=$!
    (sleep "$bound" && kill -TERM -- "-$job" && sleep 5 && kill -KILL -- "-$job") 2>/dev/null &
    guard=$!
    wait "$job"
    code=$?
    kill -TERM -- "-$guard" 2>/dev/null
    exit "$code"
  ) 2>/dev/null
  code=$?
  case $code in
    0) result=ok ;;
    77) result=skipped ;;
    137 | 143) result="ended after $bound s" ;;
    *) result="failed ($code)" ;;
  esac
  said=$(grep -vE '^([{[:space:]]|$)' "$log" | tail -1 | tr '\t' ' ' | cut -c1-300)
  printf '%s\t%s\t%d\t%s\n' "$name" "$result" $((SECONDS - begin)) "$said" >>"$work/steps.tsv"
  echo "$name: $result, $((SECONDS - begin)) s${said:+: $said}"
}

about_card() {
  cat "$card/VERSION"
  uname -srm && getconf GNU_LIBC_VERSION && nproc && free -g | sed -n 2p && df -h "$work" | tail -1
  with_libraries ldd "$card"/bin/* "$card/lib/stagecoach/stagecoach-cuda.so" | grep 'not found' | sort -u
  echo "compute-sanitizer: $(find_sanitizer || echo none)"
  command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: no driver, or not on the PATH" && return 1; }
  nvidia-smi && nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current \
    --format=csv,noheader
}

# A suite without a card skips everything, which here is a failure.
tested() {
  local said=$work/tested.$BASHPID code
  with_libraries "$@" | tee "$said"
  code=${PIPESTATUS[0]}
  ((code == 0)) || return "$code"
  ! grep -q 'SKIPPED' "$said" || { echo "the tests were skipped: no card that the module can use" && return 1; }
}

conformance() { tested "$card/bin/conformance_backends" --gtest_filter='*/cuda'; }

golden() {
  STAGECOACH_TEST_DEVICE=cuda STAGECOACH_GOLDEN_DATA=$card/golden tested "$card/bin/golden_models" \
    --gtest_filter='*Golden.*Transformers/*:*Golden.EqualBatches*'
}

bench() {
  with_libraries "$card/bin/cuda_bench" --json >"$out/cuda_bench.jsonl"
}

# The backend, its graphs and all kernels against the oracle: every shape that the tests know. But for the test that
# makes a recording fail: to memcheck a call that returns an error is one.
sanitize() {
  local sanitizer
  sanitizer=$(find_sanitizer) || { echo "no compute-sanitizer on this machine" && return 77; }
  tested "$sanitizer" --tool "$1" --error-exitcode 9 --print-limit 20 "$card/bin/conformance_backends" --gtest_filter='*/cuda:-*AreGivenUp*'
}

# What the reports' shares are of.
probe() { stagecoach probe --store "$work" --json | tee "$out/probe.json"; }

# create_store NAME PRESET WEIGHTS DISTINCT
create_store() {
  [[ -d $work/$1 ]] || stagecoach create "$2" "$work/$1" --weights "$3" --distinct-layers "$4" --quiet
}

# time_store STORE LABEL FLAGS…: adds to the step's time.….jsonl, each line with the label.
time_store() {
  local store=$1 label=$2 lines=$work/lines.$BASHPID
  shift 2
  stagecoach time --store "$work/$store" --device cuda --micro-batch 2048 --phase both --json "$@" >"$lines" || return 1
  sed "s/^{/{\"run\": \"$label\", /" "$lines" >>"$out/time.$name.jsonl"
}

time_gptj() {
  local weights
  for weights in q4 q8 f16; do
    create_store "gptj-$weights" gpt-j-6b "$weights" 2 &&
      time_store "gptj-$weights" "GPT-J $weights, 8 layers" --layers 0:8 --tokens 2048 --repeat 5 || return 1
  done
}

time_gpt3() {
  create_store gpt3-bf16 gpt3-175b bf16 1 || return 1
  local memory failed=0
  for memory in 24GB 10GB; do
    time_store gpt3-bf16 "GPT-3 bf16, 1 layer, --device-memory $memory" --layers 0:1 --tokens 2048 --repeat 3 \
      --device-memory "$memory" || failed=1
  done
  # Three layers do not fit into 10 GB: they pass through the card.
  time_store gpt3-bf16 "GPT-3 bf16, 3 layers, --device-memory 10GB" --layers 0:3 --tokens 2048 --repeat 2 \
    --device-memory 10GB || failed=1
  return $failed
}

# From disk through the host's memory to the card, neither of which holds the layers.
time_streamed() {
  create_store gptj-q8 gpt-j-6b q8 2 &&
    time_store gptj-q8 "GPT-J q8, 28 layers, --memory 2GB --device-memory 2GB" --layers 0:28 --tokens 512 --repeat 3 \
      --memory 2GB --device-memory 2GB
}

# Several ranks on the one card, each within a part of its memory, with the Open MPI that was carried along.
ranks_of() {
  local mpi=$card/mpi count=$1
  shift
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OPAL_PREFIX=$mpi OPAL_LIBDIR=$mpi/lib OPAL_PKGLIBDIR=$mpi/lib/components \
    OPAL_DATADIR=$mpi/share OPAL_PKGDATADIR=$mpi/share/openmpi OPAL_SYSCONFDIR=$mpi/share PMIX_INSTALL_PREFIX=$mpi/pmix
  LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${cublas:+$cublas:}$card/lib:$mpi/lib \
    "$mpi/bin/mpirun" --mca btl self,vader --oversubscribe --bind-to none -np "$count" "$card/bin/stagecoach" "$@"
}

# GPT-J over four GPUs of 4 GiB: one prompt, which leaves three idle, and eight.
time_ranks() {
  [[ -x $card/mpi/bin/mpirun ]] || { echo "no Open MPI was carried along" && return 77; }
  create_store gptj-f16 gpt-j-6b f16 2 || return 1
  local batch lines=$work/lines.ranks
  for batch in 1 8; do
    ranks_of 4 time --store "$work/gptj-f16" --device cuda:0 --device-memory 4GiB --cpu-layers 0 --phase decode --tokens 128 \
      --batch "$batch" --micro-batch 2 --repeat 20 --json >"$lines" || return 1
    sed "s/^{/{\"run\": \"GPT-J f16, 4 ranks of 4 GiB, $batch prompts\", /" "$lines" >>"$out/time.$name.jsonl"
  done
}

# What earlier calls have left of other steps stays.
for step in ${steps//,/ }; do
  case $step in
    bench) rm -f "$out/cuda_bench.jsonl" ;;
    probe) rm -f "$out/probe.json" ;;
    *) rm -f "$out/time.$step.jsonl" ;;
  esac
done
step card 30 about_card
step conformance 150 conformance
step golden 100 golden
step bench 300 bench
step probe 60 probe
step gptj 120 time_gptj
step gpt3 150 time_gpt3
step streamed 100 time_streamed
step ranks 120 time_ranks
step memcheck 240 sanitize memcheck
step racecheck 300 sanitize racecheck

awk -F '\t' 'NR == FNR { run[$1] = 1; next } !($1 in run)' "$work/steps.tsv" "$out/steps.tsv" >"$work/before.tsv" 2>/dev/null
cat "$work/before.tsv" "$work/steps.tsv" >"$out/steps.tsv"
tar -czf "$out/logs.${steps//,/-}.tar.gz" -C "$work" logs
python3 scripts/bench/cuda_card_summary.py "$out" || { echo "no python3: steps.tsv and the .jsonl files have everything" >&2; }
! cut -f2 "$work/steps.tsv" | grep -vE '^(ok|skipped)$' >/dev/null
