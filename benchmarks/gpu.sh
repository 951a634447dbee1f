#!/usr/bin/env bash
# Everything that needs a GPU, in three calls of ten minutes at most: proves the kernels on it, then measures them.
#
#   benchmarks/gpu.sh first  --output FOLDER      proof, and the figures that decide most
#   benchmarks/gpu.sh second --output FOLDER      the tests again, and what measured_table.py reads
#   benchmarks/gpu.sh third  --output FOLDER      the rest of it, by CUDA graphs; what plan chooses by the table; sanitizers
#   benchmarks/gpu.sh failed --output FOLDER [TEST ...]   these tests (default: those that failed last), each in a process
#                                                 of its own, under memcheck, with kernels that never wait for ever
#   benchmarks/gpu.sh PART ... --output FOLDER    some of their parts, the first ones without the gate
#
# Each part has a limit of its own and writes as it goes, and the next one comes whatever became of it; only when the
# primitives of the GPU are not what the kernels take them for does `first` end, after each of them has run alone. It
# ends with a table. FOLDER gets at most 8 files from a call: log-CALL.txt (all that was printed), parts-CALL.csv (what
# became of each part) and what the parts have measured; commit all calls' CSVs as benchmarks/results/<gpu>/.
#
# Needs one GPU, nvcc, and as PYTHON (default: python3) a Python from 3.11 on with a CUDA torch, ninja, pytest,
# pytest-xdist and pytest-timeout; neither network, git nor an installed gru_ext. What is compiled is the kit of
# benchmarks/gpu_kit.sh, which is made here where the one at hand does not fit. compare measures the kernels that keep
# the weights on the chip against torch.nn.GRU, or the kernel that GRU_EXT_CUDA_KERNEL names.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 KIT=build/gpu-kit
# The kit's gru_ext, not the one in this folder, which Python would look at first.
export PYTHONPATH=$PWD/$KIT/plain PYTHONSAFEPATH=1
export KERNEL=${GRU_EXT_CUDA_KERNEL:-stationary} WORKERS=${WORKERS:-12} FAILED=build/gpu-failed.txt
unset GRU_EXT_CUDA_KERNEL
OUTPUT='' CALL=parts

# Parts in their order, and the seconds that each has at most.
FIRST=(kit device primitives latencies steps tests compare alone ncu)
SECOND=(kit tests compare_all algorithms)
THIRD=(kit compare_graphs sanitizer defaults)
declare -A LIMIT=([kit]=110 [device]=45 [primitives]=60 [latencies]=15 [steps]=70 [compare]=45 [algorithms]=35 [ncu]=85
  [tests]=100 [alone]=60 [defaults]=110 [tune]=110 [compare_all]=340 [compare_graphs]=300 [sanitizer]=70 [failed]=450)

usage() {
  sed -n '2,23s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}
bad() {
  echo "gpu.sh: $1; benchmarks/gpu.sh --help says more" >&2
  exit 2
}

# ----------------------------------------------------------------------------------------------------------------------
# Parts
# ----------------------------------------------------------------------------------------------------------------------

# Says so and fails where there is none: tests would be skipped, and that is no pass.
need_gpu() { [[ $GPU == True ]] || { echo "gpu.sh: torch sees no GPU"; return 1; }; }

# A kit that is made here is of sources that no commit is known of, unless git tells.
part_kit() {
  benchmarks/gpu_kit.sh fits ||
    { COMMIT='' benchmarks/gpu_kit.sh build plain programs && benchmarks/gpu_kit.sh fits; }
}

part_device() {
  date -u +%FT%TZ
  uname -srm
  nvidia-smi
  nvidia-smi --query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv
  # A GRU as well: what reads the libraries first pays for all.
  "$PYTHON" -c 'import torch
print("cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_properties(0))
for dtype in (torch.float32, torch.bfloat16):
    torch.nn.GRU(64, 64, device="cuda", dtype=dtype)(torch.randn(9, 8, 64, device="cuda", dtype=dtype))[0].sum().backward()
torch.cuda.synchronize()'
}

# The operations of csrc/cuda/primitives.h, then each kernel against float64 in one small shape.
part_primitives() {
  local wrong=0 check
  need_gpu || return
  if ! timeout -k 1 10 $KIT/checks all 0 4; then
    wrong=1
    for check in reverse lanes product tf32 handover ring chain wide_chain functions refusals; do
      timeout -k 1 4 $KIT/checks $check 0 12 || echo "$check: failed or never ended"
    done
  fi
  timeout -k 1 8 $KIT/checks hang 0 1 # whether a wait in vain ends, with the kernel's own words; no kernel needs it
  return $wrong
}

part_latencies() { need_gpu && $KIT/latencies | tee "$OUTPUT/latencies.csv"; }

# A process for each kernel: one that leaves the GPU unusable for its process leaves it to the next.
part_steps() {
  local kernel failed=0
  need_gpu || return
  : > "$OUTPUT/steps.csv"
  for kernel in cluster solo grid step; do
    timeout -k 1 17 $KIT/steps --kernels $kernel --dtypes bfloat16 float32 tf32 |
      grep --line-buffered -v "$([[ -s $OUTPUT/steps.csv ]] && echo '^kernel,' || echo '^$')" | tee -a "$OUTPUT/steps.csv"
    ((PIPESTATUS[0] == 0)) || failed=1
  done
  return $failed
}

# Tests by so many processes. A test that takes longer than SECONDS has its process ended; another takes its place.
run_tests() { # PROCESSES SECONDS FILE, then arguments of pytest
  need_gpu || return
  rm -f "$OUTPUT/$3"
  "$PYTHON" -m pytest -p no:cacheprovider -n "$1" --dist worksteal --timeout "$2" --timeout-method thread -v \
    --junitxml "$OUTPUT/$3" "${@:4}"
}

part_tests() { run_tests "$WORKERS" 40 "tests-$CALL.xml" tests/test_cuda.py -m "not alone"; }
# What needs the GPU for itself. Two streams come last, on which two grids might wait for one another.
part_alone() { run_tests 1 60 alone.xml tests/test_cuda.py -m alone; }

# Shapes B,T,I,H: every batch with the first size, then with the next.
shapes() { # "LENGTHS" "SIZES" "BATCHES"
  local seq_len hidden_size batch
  for seq_len in $1; do
    for hidden_size in $2; do
      for batch in $3; do echo "$batch,$seq_len,$hidden_size,$hidden_size"; done
    done
  done
}
compare() { # FILE "DTYPES" "LENGTHS" "SIZES" "BATCHES", then options of compare.py
  # shellcheck disable=SC2046,SC2086 # lists of words
  GRU_EXT_CUDA_KERNEL=$KERNEL "$PYTHON" benchmarks/compare.py --device cuda --quick --seconds 0.1 --dtypes $2 \
    --shapes $(shapes "$3" "$4" "$5") --csv "$OUTPUT/$1" "${@:6}"
}
part_compare() { compare compare.csv "bfloat16 float32" 256 "256 512 1024 128 64" "8 64 1"; }
# A kernel is on by default only where measured_table.py finds it measured.
part_compare_all() {
  local failed=0 types="bfloat16 float16 float32-vs-tf32"
  compare compare-types.csv "$types" 256 "256 128 64 512 192 384 1024 768" "8 64 1 256" || failed=1
  compare compare-short.csv "$types" 8 "256 1024 64 512 128" "8 64 1" || failed=1
  compare compare-packed.csv "$types" 256 "256 512 128 1024 64" "64 8 1" --layout packed || failed=1
  compare compare-bidirectional.csv "$types" 256 "256 512 128 1024 64" "8 64 1" --bidirectional || failed=1
  return $failed
}
# The same without the host's share: cells where ours may win by fewer launches alone.
part_compare_graphs() {
  local failed=0 types="bfloat16 float16 float32-vs-tf32"
  compare graph-types.csv "bfloat16 float16" 256 "256 512 128 64 1024 192 384" "8 64 1 256" --graph || failed=1
  compare graph-short.csv "$types" 8 "256 1024 64 512 128" "8 64 1" --graph || failed=1
  compare graph-packed.csv "$types" 256 "256 512 128 1024 64" "64 8 1" --graph --layout packed || failed=1
  compare graph-bidirectional.csv "$types" 256 "256 512 128 1024 64" "8 64 1" --graph --bidirectional || failed=1
  compare graph-float32.csv float32-vs-tf32 256 "256 192 384" "8 64 1 256" --graph || failed=1
  return $failed
}
# What users get, who set no variable.
part_defaults() {
  "$PYTHON" benchmarks/compare.py --device cuda --quick --dtypes float32-vs-tf32 bfloat16 float16 \
    --csv "$OUTPUT/defaults.csv"
}

part_algorithms() {
  "$PYTHON" benchmarks/algorithms.py --hidden-sizes 128 256 512 1024 --dtypes bfloat16 float32 \
    --csv "$OUTPUT/algorithms.csv"
}

# One launch of each kernel that matters most, with every counter.
part_ncu() {
  local folder status=0 kernel pass hidden_size name
  need_gpu || return
  folder=$(mktemp -d)
  while read -r kernel pass hidden_size; do
    name=$kernel-$pass-$hidden_size
    timeout -k 2 25 ncu --set full --clock-control none --kernel-name "regex:${pass}_stationary" --launch-skip 2 \
      --launch-count 1 --export "$folder/$name" $KIT/steps --checks 0 --kernels "$kernel" --dtypes bfloat16 \
      --hidden-sizes "$hidden_size" --batches 8 --steps 192 --repeats 1 < /dev/null || { status=1; continue; }
    ncu --import "$folder/$name.ncu-rep" --page details | tee "$folder/$name.txt" |
      grep -E 'Duration|Elapsed Cycles|Registers Per|Executed Ipc|Stall|stall' || true
    tar -czf "$OUTPUT/ncu.tar.gz" -C "$folder" .
  done <<< "cluster forward 256
cluster backward 512
grid forward 1024"
  rm -rf "$folder"
  return $status
}

# Every division of the work, the sizes that matter most first.
part_tune() {
  "$PYTHON" benchmarks/tune_cuda.py --dtypes bfloat16 float32 --rounds 3 --csv "$OUTPUT/tune.csv"
}

# Each tool looks at the primitives, and at every kernel in one small shape.
part_sanitizer() {
  local tool failed=0 options
  need_gpu || return
  for tool in memcheck racecheck; do
    echo "--- $tool"
    options=(--tool "$tool" --error-exitcode 9)
    [[ $tool == memcheck ]] && options+=(--report-api-errors no) # of launches that are refused as they should be
    timeout -k 2 16 compute-sanitizer "${options[@]}" $KIT/checks all 0 1 || failed=1
    timeout -k 2 16 compute-sanitizer "${options[@]}" --kernel-regex kns=gru $KIT/steps \
      --hidden-sizes 40 --batches 5 --steps 1 --few 1 --repeats 1 --dtypes bfloat16 float32 || failed=1
  done
  return $failed
}

# The tests named in $FAILED, one process each.
part_failed() {
  local test failed=0
  need_gpu || return
  [[ -s $FAILED ]] || { echo "gpu.sh: no test is known to have failed"; return 1; }
  benchmarks/gpu_kit.sh fits && [[ -d $KIT/spin ]] || benchmarks/gpu_kit.sh build || return
  while read -r test; do
    echo "--- $test"
    PYTHONPATH=$PWD/$KIT/spin timeout -k 2 120 compute-sanitizer --tool memcheck --report-api-errors no \
      --error-exitcode 9 --kernel-regex kns=gru "$PYTHON" -m pytest -p no:cacheprovider -q "$test" < /dev/null || failed=1
  done < $FAILED
  return $failed
}

# ----------------------------------------------------------------------------------------------------------------------
# The command line
# ----------------------------------------------------------------------------------------------------------------------

parts=() tests=() gate=
while (($#)); do
  case $1 in
    --output) OUTPUT=${2:?gpu.sh: --output needs a folder}; shift ;;
    -h | --help) usage 0 ;;
    first) parts+=("${FIRST[@]}"); gate=primitives CALL=$1 ;;
    second) parts+=("${SECOND[@]}"); CALL=$1 ;;
    third) parts+=("${THIRD[@]}"); CALL=$1 ;;
    *::*) tests+=("$1") ;;
    failed) parts+=("$1"); CALL=$1 ;;
    *) [[ -v LIMIT[$1] ]] || bad "there is no part $1"; parts+=("$1") ;;
  esac
  shift
done
((${#parts[@]})) || bad "expected first, second, third, failed or parts"
[[ -n $OUTPUT ]] || bad "--output FOLDER is missing"
mkdir -p "$OUTPUT" build
OUTPUT=$(cd "$OUTPUT" && pwd)
export OUTPUT CALL
LOG=$OUTPUT/log-$CALL.txt PARTS=$OUTPUT/parts-$CALL.csv
((${#tests[@]})) && printf '%s\n' "${tests[@]}" > $FAILED

# A part runs in a shell of its own, so that its limit ends all of it. An interrupt first: what measures writes its
# table then.
export -f need_gpu run_tests shapes compare
GPU=$(timeout 120 "$PYTHON" -c 'import torch; print(torch.cuda.is_available())') # once: it takes seconds
export GPU
echo "part,result,seconds" > "$PARTS"
: > "$LOG"
failures=0
for part in "${parts[@]}"; do
  limit=${GPU_PART_SECONDS:-${LIMIT[$part]}} # the variable is for tests
  begin=$SECONDS
  printf '\n=== %s (at most %d s; %d s since the start)\n' "$part" "$limit" "$SECONDS" | tee -a "$LOG"
  COMMIT=$(sed -n 's/^commit //p' $KIT/record 2> /dev/null) # what the results are of, where there is no git
  export COMMIT
  export -f "part_$part"
  timeout --signal=INT --kill-after=15 "$limit" bash -uo pipefail -c "part_$part" 2>&1 | tee -a "$LOG" | tail -n 12
  case ${PIPESTATUS[0]} in
    0) result=passed ;;
    124 | 130 | 137) result="out of time" ;;
    *) result=failed ;;
  esac
  [[ $result == passed ]] || failures=$((failures + 1))
  echo "$part,$result,$((SECONDS - begin))" >> "$PARTS"
  if [[ $part == "$gate" && $result != passed ]]; then
    echo "gpu.sh: without primitives that are right no kernel is worth a measurement: the call ends here" |
      tee -a "$LOG"
    break
  fi
done

printf '\n=== summary (%d s)\n' "$SECONDS" | tee -a "$LOG"
"$PYTHON" benchmarks/gpu_summary.py "$OUTPUT" "$CALL" --failed $FAILED 2>&1 | tee -a "$LOG"
exit $((failures > 0))
