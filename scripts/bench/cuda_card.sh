#!/usr/bin/env bash
# Checks and times Stagecoach on a real NVIDIA card, on a machine that may have nothing but a driver and cuBLAS: no
# network, no compiler, none of the libraries that a build needs.
#
#   scripts/bench/cuda_card.sh --prepare [--architectures LIST]
#       where Stagecoach can be built: builds into build/card-tree, packs what runs elsewhere into build/card.tar.gz.
#       Architectures as in CMake ("80-real;90-real"); default: those that a build has anyway.
#   scripts/bench/cuda_card.sh [--out DIR] [--limit SECONDS] [--steps LIST]
#       where the card is, beside that archive: runs all steps, or those of a list ("card,bench"), one after the
#       other, whatever the others do. Results go to --out, else $OUT, else build/card-results, beside those of earlier
#       calls: summary.txt, summary.json, steps.tsv, results.jsonl (what cuda_bench, probe and time printed, by step), a
#       trace of the ranks, and each call's logs in an archive. Where a call may take no longer than ten minutes, these
#       three do it all:
#         --steps card,conformance,golden,bench
#         --steps card,probe,gptj,gpt3,streamed,ranks,transformers
#         --steps card,memcheck,racecheck
#       Where each leaves a folder of its own, scripts/bench/cuda_card_summary.py FOLDER… shows them as one.
#
# Exit code 1 if a step failed. Steps that find no time left (--limit, default 560 s) say so and count as failed.
set -uo pipefail
readonly called_from=$PWD
cd "$(dirname "$0")/../.." || exit 2

readonly archive=$PWD/build/card.tar.gz tree=build/card-tree
readonly all_steps=card,conformance,golden,bench,probe,gptj,gpt3,streamed,ranks,transformers,memcheck,racecheck
usage="usage: scripts/bench/cuda_card.sh --prepare [--architectures LIST] | [--out DIR] [--limit SECONDS] [--steps LIST]"

prepare=0 architectures="" out=${OUT:-build/card-results} limit=560 steps=$all_steps
while (($#)); do
  case $1 in
    --prepare) prepare=1 && shift ;;
    --architectures | --out | --limit | --steps)
      (($# >= 2)) || { echo "$usage" >&2 && exit 2; }
      declare "${1#--}=$2" && shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' scripts/bench/cuda_card.sh && exit ;;
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
  # Of networks that one machine does not have; their libraries are larger than all else.
  rm -f "$into"/lib/components/mca_*{ucx,uct,ofi,openib,psm,psm2,usnic,portals4}.so
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
  # What an earlier call chose is not this one's.
  if [[ -n $architectures ]]; then
    options+=("-DSTAGECOACH_CUDA_ARCHITECTURES=$architectures")
  else
    options+=(-U STAGECOACH_CUDA_ARCHITECTURES)
  fi
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
  readelf -d "$card/lib/stagecoach/stagecoach-cuda.so" | sed -n 's/.*NEEDED.*\[\(libcublas\.so[^]]*\)\]/\1/p' >"$card/CUBLAS"
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
[[ $out == /* || $out == build/card-results ]] || out=$called_from/$out
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d "${TMPDIR:-/tmp}/stagecoach-card.XXXXXX") && mkdir "$work/logs" || exit 2
trap 'rm -rf "$work"' EXIT
card=$work/card
tar -xzf "$archive" -C "$work" || exit 2
touch "$out/steps.tsv" "$out/results.jsonl" || exit 2

# cuBLAS: where the loader finds it, or where toolkits and Python packages put it.
cublas_folder() {
  local folder library
  library=$(<"$card/CUBLAS")
  ldconfig -p 2>/dev/null | grep -F "$library" >/dev/null && return
  for folder in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
    $(python3 -c 'import site, sys; print(*site.getsitepackages())' 2>/dev/null | sed 's/ /\n/g' | sed 's/$/\/nvidia\/*\/lib/'); do
    [[ -e $folder/$library ]] && echo "$folder" && return
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

# What the machine knows its cards by; nothing where it has none.
names_of_cards() { nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | paste -sd+ -; }

# A row of steps.tsv, instead of one that an earlier call left: step, result, seconds, card, what the step last said.
keep_row() {
  local -r name=$1 result=$2 seconds=$3 said=$4
  awk -F '\t' -v name="$name" '$1 != name' "$out/steps.tsv" >"$work/rows.tsv"
  printf '%s\t%s\t%d\t%s\t%s\n' "$name" "$result" "$seconds" "$cards" "$said" >>"$work/rows.tsv"
  cp "$work/rows.tsv" "$out/steps.tsv"
}

# Adds lines of JSON to results.jsonl, each with the step's name and, if one is given, the run's.
keep_results() {
  local run=${1:+"\"run\": \"$1\", "}
  sed -u "s/^{/{\"step\": \"$name\", $run/" >>"$out/results.jsonl"
}

# Whether anything that the step started still runs: ranks of mpirun are in process groups of their own.
still_runs() {
  local path
  kill -0 -- "-$1" 2>/dev/null && return
  for path in /proc/[0-9]*/exe; do
    [[ $(readlink "$path" 2>/dev/null) == "$card"/* ]] && return
  done
  return 1
}
end_step() {
  local path tries
  kill -TERM -- "-$1" 2>/dev/null
  for ((tries = 0; tries < 50; ++tries)); do
    still_runs "$1" || return
    sleep 0.1
  done
  kill -KILL -- "-$1" 2>/dev/null
  for path in /proc/[0-9]*/exe; do
    [[ $(readlink "$path" 2>/dev/null) == "$card"/* ]] && kill -KILL "$(basename "$(dirname "$path")")" 2>/dev/null
  done
}

# step NAME BOUND COMMAND…: a row of its own, and a log.
failed=0
step() {
  local name=$1 bound=$2 begin=$SECONDS code result said job
  shift 2
  [[ ,$steps, == *,$name,* ]] || return 0
  local log=$work/logs/$name.log
  if (($(left) < 15)); then
    failed=1
    echo "$name: not run, no time left"
    # What an earlier call found is worth more.
    cut -f1 "$out/steps.tsv" | grep -x "$name" >/dev/null || keep_row "$name" "not run" 0 "no time left of $limit s"
    return
  fi
  sed -i "/^{\"step\": \"$name\",/d" "$out/results.jsonl"
  ((bound > $(left) - 5)) && bound=$(($(left) - 5))
  # A group of its own, which ends as a whole.
  set -m
  "$@" >"$log" 2>&1 &
  job=$!
  set +m
  while kill -0 "$job" 2>/dev/null && ((SECONDS - begin < bound)); do sleep 0.2; done
  result=""
  if kill -0 "$job" 2>/dev/null; then
    result="ended after $bound s"
    end_step "$job"
  fi
  wait "$job" 2>/dev/null
  code=$?
  case ${result:-$code} in
    0) result=ok ;;
    77) result=skipped ;;
    [0-9]*) result="failed ($code)" ;;
  esac
  [[ $result == ok || $result == skipped ]] || failed=1
  # Our own last word, else that of whatever the step ran.
  said=$(grep -E '^(stagecoach|cuda_card): ' "$log" | tail -1)
  [[ $result != ok && -n $said ]] || said=$(grep -vE '^([-{[:space:]]|$)| ETA ' "$log" | tail -1)
  said=$(tr '\t\r' '  ' <<<"$said" | cut -c1-300 | iconv -c -f utf-8 -t utf-8)
  keep_row "$name" "$result" $((SECONDS - begin)) "$said"
  echo "$name: $result, $((SECONDS - begin)) s${said:+: $said}"
}

about_card() {
  cat "$card/VERSION"
  uname -srm && getconf GNU_LIBC_VERSION && nproc && free -g | sed -n 2p && df -h "$work" | tail -1
  # Libraries that are missing, or older than those of where it was built: each step's own trouble.
  with_libraries ldd "$card"/bin/* "$card"/lib/stagecoach/*.so 2>&1 | grep 'not found' | sort -u
  [[ ! -d $card/mpi ]] || with_mpi ldd "$card/mpi/bin/mpirun" "$card/lib/stagecoach/stagecoach-mpi.so" 2>&1 | grep 'not found' | sort -u
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
  ! grep -q 'SKIPPED' "$said" || { echo "cuda_card: tests were skipped: no card that the module can use" && return 1; }
  grep -qE '\[  PASSED  \] [1-9]' "$said" || { echo "cuda_card: no test has run" && return 1; }
}

conformance() { tested "$card/bin/conformance_backends" --gtest_filter='*/cuda'; }

golden() {
  STAGECOACH_TEST_DEVICE=cuda STAGECOACH_GOLDEN_DATA=$card/golden tested "$card/bin/golden_models" \
    --gtest_filter='*Golden.*Transformers/*:*Golden.EqualBatches*'
}

bench() {
  with_libraries "$card/bin/cuda_bench" --json | keep_results
}

# The backend, its graphs and all kernels against the oracle: every shape that the tests know. But for the test that
# makes a recording fail: to memcheck a call that returns an error is one.
sanitize() {
  local sanitizer
  sanitizer=$(find_sanitizer) || { echo "no compute-sanitizer on this machine" && return 77; }
  tested "$sanitizer" --tool "$1" --error-exitcode 9 --print-limit 20 "$card/bin/conformance_backends" --gtest_filter='*/cuda:-*AreGivenUp*'
}

# What the reports' shares are of.
probe() {
  local probed
  probed=$(stagecoach probe --store "$work" --json) || return 1
  keep_results <<<"$probed"
  ! grep -F '"gpus":[]' <<<"$probed" >/dev/null || { echo "cuda_card: no GPU was probed" && return 1; }
}

# create_store NAME PRESET WEIGHTS DISTINCT
create_store() {
  [[ -e $work/$1/manifest.json ]] || { rm -rf "${work:?}/$1" && stagecoach create "$2" "$work/$1" --weights "$3" --distinct-layers "$4" --quiet; }
}

# time_store STORE LABEL FLAGS…: what the processor computes is another measurement.
time_store() {
  local store=$1 label=$2
  shift 2
  stagecoach time --store "$work/$store" --device cuda --cpu-layers 0 --micro-batch 2048 --phase both --json "$@" | keep_results "$label"
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
  return "$failed"
}

# From disk through the host's memory to the card, neither of which holds the layers.
time_streamed() {
  create_store gptj-q8 gpt-j-6b q8 2 &&
    time_store gptj-q8 "GPT-J q8, 28 layers, --memory 2GB --device-memory 2GB" --layers 0:28 --tokens 512 --repeat 3 \
      --memory 2GB --device-memory 2GB
}

# The Open MPI that was carried along; it asks for no network.
with_mpi() {
  local mpi=$card/mpi
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OPAL_PREFIX=$mpi OPAL_LIBDIR=$mpi/lib OPAL_PKGLIBDIR=$mpi/lib/components \
    OPAL_DATADIR=$mpi/share OPAL_PKGDATADIR=$mpi/share/openmpi OPAL_SYSCONFDIR=$mpi/share PMIX_INSTALL_PREFIX=$mpi/pmix \
    PMIX_MCA_pcompress_base_silence_warning=1 \
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${cublas:+$cublas:}$card/lib:$mpi/lib "$@"
}

# GPT-J over four GPUs of 4 GiB: one prompt, which leaves three idle, and eight. Where there are fewer cards ranks share
# them, each within its part of the memory.
time_ranks() {
  [[ -x $card/mpi/bin/mpirun ]] || { echo "cuda_card: no Open MPI was carried along" && return 77; }
  create_store gptj-f16 gpt-j-6b f16 2 || return 1
  local batch
  for batch in 1 8; do
    with_mpi "$card/mpi/bin/mpirun" --mca btl self,vader --oversubscribe --bind-to none -np 4 "$card/bin/stagecoach" \
      time --store "$work/gptj-f16" --device cuda --device-memory 4GiB --cpu-layers 0 --phase decode --tokens 128 \
      --batch "$batch" --micro-batch 2 --repeat 20 --report "$work/report.$batch" --json |
      keep_results "GPT-J f16, 4 ranks of 4 GiB, $batch prompts" || return 1
  done
  cp "$work/report.8/trace.json" "$out/trace.ranks.json"
}

# What the single prompt is compared with, over the same cards: as many as there are, up to four.
transformers() {
  python3 -c 'import torch, transformers; torch.zeros(1, device="cuda")' 2>/dev/null ||
    { echo "cuda_card: no PyTorch and transformers that have a card" && return 77; }
  python3 scripts/bench/transformers_decode.py --device cuda --cards 4 --tokens 128 --repeat 40 | keep_results "transformers, GPT-J f16, 1 prompt"
}

cards=$(names_of_cards)
others=$(cut -f4 "$out/steps.tsv" | grep -vFx "$cards" | sort -u | head -1)
[[ -z $others ]] || { echo "cuda_card: $out has results of '$others', and here is '${cards:-no card}'; give another --out" >&2 && exit 2; }
step card 30 about_card
step conformance 150 conformance
step golden 100 golden
step bench 300 bench
step probe 60 probe
step gptj 120 time_gptj
step gpt3 150 time_gpt3
step streamed 100 time_streamed
step ranks 120 time_ranks
step transformers 150 transformers
step memcheck 240 sanitize memcheck
step racecheck 300 sanitize racecheck

tar -czf "$out/logs.${steps//,/-}.tar.gz" -C "$work" logs
if command -v python3 >/dev/null; then
  python3 scripts/bench/cuda_card_summary.py "$out"
else
  echo "no python3 to sum it up: $out/steps.tsv and results.jsonl have everything"
fi
exit "$failed"
