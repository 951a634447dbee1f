#!/usr/bin/env bash
# Everything that needs a GPU, in two calls of ten minutes at most: proves the kernels on it, then measures them.
#
#   benchmarks/gpu.sh first  --output FOLDER      proof, and the figures that decide most: some four minutes
#   benchmarks/gpu.sh second --output FOLDER      all tests, tuning and comparisons: some eight minutes
#   benchmarks/gpu.sh failed --output FOLDER [TEST ...]   these tests (default: those that failed last), each in a process
#                                                 of its own, under memcheck, with kernels that never wait for ever
#   benchmarks/gpu.sh PART ... --output FOLDER    some of their parts, the first ones without the gate
#
# Each part has a limit of its own and writes as it goes, and the next one comes whatever became of it; only when the
# primitives of the GPU are not what the kernels take them for does `first` end, after each of them has run alone. It
# ends with a table. FOLDER gets at most 8 files: log.txt (all that was printed), parts.csv (what became of each part)
# and what the parts have measured; commit it as benchmarks/results/<gpu>/.
#
# Needs one GPU, nvcc, and as PYTHON (default: python3) a Python from 3.11 on with a CUDA torch, ninja, pybind11, pytest,
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
OUTPUT=

# Parts in their order, and the seconds that each has at most.
FIRST=(kit device primitives latencies steps sizes compare algorithms ncu)
SECOND=(kit tests alone tune compare_all sanitizer)
declare -A LIMIT=([kit]=110 [device]=20 [primitives]=30 [latencies]=15 [steps]=40 [sizes]=75 [compare]=45
  [algorithms]=20 [ncu]=45 [tests]=100 [alone]=50 [tune]=130 [compare_all]=100 [sanitizer]=50 [failed]=570)

usage() {
  sed -n '2,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
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

part_kit() { benchmarks/gpu_kit.sh fits || { benchmarks/gpu_kit.sh build plain programs && benchmarks/gpu_kit.sh fits; }; }

part_device() {
  date -u +%FT%TZ
  uname -srm
  nvidia-smi
  nvidia-smi --query-gpu=clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv
  "$PYTHON" -c 'import torch; print("cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_properties(0))'
}

# The operations of csrc/cuda/primitives.h, then each kernel against float64 in one small shape.
part_primitives() {
  local wrong=0 check
  need_gpu || return
  if ! $KIT/checks all 0 4; then
    wrong=1
    for check in reverse lanes product tf32 handover ring neighbour grid chain refusals; do $KIT/checks $check 0 12; done
  fi
  timeout 8 $KIT/checks hang 0 1 # whether a wait in vain ends, with the kernel's own words; no kernel needs it
  return $wrong
}

part_latencies() { need_gpu && $KIT/latencies | tee "$OUTPUT/latencies.csv"; }

part_steps() { need_gpu && $KIT/steps --dtypes bfloat16 float32 tf32 | tee "$OUTPUT/steps.csv"; }

# Tests by so many processes. A test that takes longer than 25 seconds has its process ended; another takes its place.
run_tests() { # PROCESSES FILE, then arguments of pytest
  need_gpu || return
  rm -f "$OUTPUT/$2"
  "$PYTHON" -m pytest -p no:cacheprovider -n "$1" --dist worksteal --timeout 25 --timeout-method thread -v \
    --junitxml "$OUTPUT/$2" "${@:3}"
}

part_sizes() {
  local test=tests/test_cuda.py::test
  run_tests "$WORKERS" tests.xml \
    ${test}_stationary_sizes ${test}_larger_sizes ${test}_special_values ${test}_shapes ${test}_options
}
part_tests() { run_tests "$WORKERS" tests.xml tests/test_cuda.py -m "not alone"; }
# What needs the GPU for itself. Two streams come last, on which two grids might wait for one another.
part_alone() { run_tests 1 alone.xml tests/test_cuda.py -m alone; }

# Shapes B,T,I,H: every batch with the first size, then with the next.
shapes() { # "SIZES" "BATCHES"
  local hidden_size batch
  for hidden_size in $1; do
    for batch in $2; do echo "$batch,256,$hidden_size,$hidden_size"; done
  done
}
compare() { # LAYOUT "DTYPES" "SIZES" "BATCHES" FILE
  # shellcheck disable=SC2046,SC2086 # lists of words
  GRU_EXT_CUDA_KERNEL=$KERNEL "$PYTHON" benchmarks/compare.py --device cuda --quick --layout "$1" --dtypes $2 \
    --shapes $(shapes "$3" "$4") --csv "$OUTPUT/$5"
}
part_compare() { compare time-first "bfloat16 float32" "256 512 1024 128 64" "8 64 1" compare.csv; }
# What `first` leaves out: packed input, the other types, more batches.
part_compare_all() {
  local failed=0
  compare packed "bfloat16 float32" "256 512 1024 128 64" "64 8 1" compare-packed.csv || failed=1
  compare time-first "float16 tf32" "256 512 1024 128 64" "8 64 1" compare-types.csv || failed=1
  compare time-first "bfloat16 float32" "256 512 1024 2048 192 768" "32 128 256" compare-batches.csv || failed=1
  return $failed
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
    timeout 14 ncu --set full --clock-control none --kernel-name "regex:${pass}_stationary" --launch-skip 1 \
      --launch-count 1 --export "$folder/$name" $KIT/steps --checks 0 --kernels "$kernel" --dtypes bfloat16 \
      --hidden-sizes "$hidden_size" --batches 8 --steps 192 --repeats 1 < /dev/null || { status=1; continue; }
    ncu --import "$folder/$name.ncu-rep" --page details | tee "$folder/$name.txt" |
      grep -E 'Duration|Elapsed Cycles|Registers Per|Executed Ipc|Stall|stall' || true
  done <<< "cluster forward 256
cluster backward 512
grid forward 1024"
  tar -czf "$OUTPUT/ncu.tar.gz" -C "$folder" .
  rm -rf "$folder"
  return $status
}

# Every division of the work, the sizes that matter most first.
part_tune() {
  "$PYTHON" benchmarks/tune_cuda.py --dtypes bfloat16 float32 --rounds 3 --csv "$OUTPUT/tune.csv"
}

# Each tool looks at the primitives, and at every kernel in one small shape.
part_sanitizer() {
  local tool failed=0
  need_gpu || return
  for tool in memcheck racecheck; do
    echo "--- $tool"
    timeout 12 compute-sanitizer --tool $tool --error-exitcode 9 $KIT/checks all 0 1 || failed=1
    timeout 12 compute-sanitizer --tool $tool --error-exitcode 9 --kernel-regex kns=gru $KIT/steps \
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
    PYTHONPATH=$PWD/$KIT/spin timeout 120 compute-sanitizer --tool memcheck --error-exitcode 9 \
      --kernel-regex kns=gru "$PYTHON" -m pytest -p no:cacheprovider -q "$test" < /dev/null || failed=1
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
    first) parts+=("${FIRST[@]}"); gate=primitives ;;
    second) parts+=("${SECOND[@]}") ;;
    *::*) tests+=("$1") ;;
    *) [[ -v LIMIT[$1] ]] || bad "there is no part $1"; parts+=("$1") ;;
  esac
  shift
done
((${#parts[@]})) || bad "expected first, second, failed or parts"
[[ -n $OUTPUT ]] || bad "--output FOLDER is missing"
mkdir -p "$OUTPUT" build
OUTPUT=$(cd "$OUTPUT" && pwd)
export OUTPUT
((${#tests[@]})) && printf '%s\n' "${tests[@]}" > $FAILED

# A part runs in a shell of its own, so that its limit ends all of it. An interrupt first: what measures writes its
# table then.
export -f need_gpu run_tests shapes compare
GPU=$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())') # once: it takes seconds
export GPU
echo "part,result,seconds" > "$OUTPUT/parts.csv"
: > "$OUTPUT/log.txt"
failures=0
for part in "${parts[@]}"; do
  limit=${GPU_PART_SECONDS:-${LIMIT[$part]}} # the variable is for tests
  begin=$SECONDS
  printf '\n=== %s (at most %d s; %d s since the start)\n' "$part" "$limit" "$SECONDS" | tee -a "$OUTPUT/log.txt"
  COMMIT=$(sed -n 's/^commit //p' $KIT/record 2> /dev/null) # what the results are of, where there is no git
  export COMMIT
  export -f "part_$part"
  timeout --signal=INT --kill-after=5 "$limit" bash -uo pipefail -c "part_$part" 2>&1 | tee -a "$OUTPUT/log.txt" | tail -n 12
  case ${PIPESTATUS[0]} in
    0) result=passed ;;
    124 | 130 | 137) result="out of time" ;;
    *) result=failed ;;
  esac
  [[ $result == passed ]] || failures=$((failures + 1))
  echo "$part,$result,$((SECONDS - begin))" >> "$OUTPUT/parts.csv"
  if [[ $part == "$gate" && $result != passed ]]; then
    echo "gpu.sh: without primitives that are right no kernel is worth a measurement: the call ends here" |
      tee -a "$OUTPUT/log.txt"
    break
  fi
done

printf '\n=== summary (%d s)\n' "$SECONDS" | tee -a "$OUTPUT/log.txt"
"$PYTHON" benchmarks/gpu_summary.py "$OUTPUT" --failed $FAILED 2>&1 | tee -a "$OUTPUT/log.txt"
exit $((failures > 0))
