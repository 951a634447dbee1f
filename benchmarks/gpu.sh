#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds for the card found, proves the kernels on it, measures them.
#
#   benchmarks/gpu.sh [--output FOLDER] [--minutes N] [STAGE ...]
#
# Stages, in order (default: all): environment build primitives tests latencies tune padded packed algorithms sanitizer.
# Each has a limit of its own, all together N minutes (default 9), and one that fails or runs out of time does not stop
# the next. Needs one GPU, nvcc, and a Python with a CUDA torch, ninja, pybind11 and pytest; no network. PYTHON names
# the Python. padded and packed compare the kernels that keep the weights on the chip with torch.nn.GRU, or the kernel
# that GRU_EXT_CUDA_KERNEL names.
#
# FOLDER (default: build/gpu) gets log.txt, which begins with the environment, a CSV a stage, and stages.csv, what
# became of each; commit it as benchmarks/results/<gpu>/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUTPUT=build/gpu
MINUTES=9
ALL=(environment build primitives tests latencies tune padded packed algorithms sanitizer)
declare -A LIMIT=([environment]=20 [build]=180 [primitives]=60 [tests]=150 [latencies]=60 [tune]=120 [padded]=200
  [packed]=200 [algorithms]=60 [sanitizer]=300) # seconds
KERNEL=${GRU_EXT_CUDA_KERNEL:-stationary} # what is compared; step for the other path
export BATCHES="1 8 32 64 128 256" HIDDEN_SIZES="64 128 192 256 512 1024 2048" SEQ_LEN=256

usage() {
  sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}

stages=()
while (($#)); do
  case $1 in
    --output) OUTPUT=${2:?--output needs a folder}; shift 2 ;;
    --minutes) MINUTES=${2:?--minutes needs a number}; shift 2 ;;
    -h | --help) usage 0 ;;
    *)
      [[ -v LIMIT[$1] ]] || { echo "gpu.sh: there is no stage $1" >&2; usage 2 >&2; }
      stages+=("$1"); shift ;;
  esac
done
((${#stages[@]})) || stages=("${ALL[@]}")
[[ $MINUTES =~ ^[1-9][0-9]*$ ]] || { echo "gpu.sh: --minutes is $MINUTES; expected a whole number" >&2; exit 2; }
mkdir -p "$OUTPUT" build
OUTPUT=$(cd "$OUTPUT" && pwd)
DEADLINE=$((SECONDS + MINUTES * 60))
export PYTHONUNBUFFERED=1 GRU_EXT_FORCE_CUDA=1

# Says so and fails where there is none: tests would be skipped, and that is no pass.
need_gpu() { "$PYTHON" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu.sh: torch sees no GPU")'; }

# The card's, such as sm_90a: the letter stands for the instructions that only this architecture has.
architecture() {
  "$PYTHON" -c 'import torch; major, minor = torch.cuda.get_device_capability()
print(f"sm_{major}{minor}" + ("a" if major >= 9 else ""))'
}

# What nvcc compiles with the primitives; the same flags as in benchmarks/compile_report.py.
compile() {
  need_gpu || return
  nvcc -std=c++17 -O3 -lineinfo "-arch=$(architecture)" -Icsrc -Itests "$1" -o "$2"
}

stage_environment() {
  git rev-parse HEAD 2> /dev/null || echo "commit ${COMMIT:-unknown: no git, and COMMIT is not set}"
  date -u +%FT%TZ
  uname -srm
  nvidia-smi
  nvcc --version
  "$PYTHON" -c 'import sys, torch; print(sys.version); print("torch", torch.__version__, "CUDA", torch.version.cuda,
    "cuDNN", torch.backends.cudnn.version()); print(torch.cuda.get_device_properties(0))'
}

stage_build() {
  TORCH_CUDA_ARCH_LIST=native "$PYTHON" setup.py build_ext --inplace && "$PYTHON" -m gru_ext info
}

stage_primitives() {
  compile tests/emulator/checks.cu build/gpu-checks && build/gpu-checks all
}

stage_tests() {
  rm -f "$OUTPUT/tests.xml"
  need_gpu || return
  "$PYTHON" -m pytest tests/test_cuda.py -q -p no:cacheprovider --junitxml "$OUTPUT/tests.xml"
}

# Each tool looks at our kernels alone, in one small case of each dtype, and at the primitives.
stage_sanitizer() {
  local tool failed=0
  need_gpu || return
  [[ -x build/gpu-checks ]] || compile tests/emulator/checks.cu build/gpu-checks
  for tool in memcheck racecheck initcheck synccheck; do
    echo "--- $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu-checks all 0 2 || failed=1
    compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=gru "$PYTHON" -m pytest \
      tests/test_cuda.py -q -p no:cacheprovider -k "test_sanitizer" || failed=1
  done
  return $failed
}

stage_latencies() {
  compile benchmarks/cuda/latencies.cu build/gpu-latencies && build/gpu-latencies | tee "$OUTPUT/latencies.csv"
}

# How the stationary kernels should divide their work.
stage_tune() {
  rm -f "$OUTPUT/tune.csv"
  "$PYTHON" benchmarks/tune_cuda.py --csv "$OUTPUT/tune.csv"
}

stage_algorithms() {
  rm -f "$OUTPUT/algorithms.csv"
  "$PYTHON" benchmarks/algorithms.py --csv "$OUTPUT/algorithms.csv"
}

compare() { # LAYOUT FILE
  rm -f "$2"
  local batch hidden shapes=()
  for hidden in $HIDDEN_SIZES; do
    for batch in $BATCHES; do shapes+=("$batch,$SEQ_LEN,$hidden,$hidden"); done
  done
  GRU_EXT_CUDA_KERNEL=$KERNEL "$PYTHON" benchmarks/compare.py --device cuda --layout "$1" \
    --dtypes float32 tf32 bfloat16 float16 --shapes "${shapes[@]}" --quick --csv "$2"
}
stage_padded() { compare time-first "$OUTPUT/padded.csv"; }
stage_packed() { compare packed "$OUTPUT/packed.csv"; }

# ----------------------------------------------------------------------------------------------------------------------

# A stage runs in a shell of its own, so that its limit ends all of it. An interrupt first: what measures writes its
# table then.
export -f need_gpu architecture compile compare
export PYTHON OUTPUT KERNEL
echo "stage,result,seconds" > "$OUTPUT/stages.csv"
: > "$OUTPUT/log.txt"
failures=0
for stage in "${stages[@]}"; do
  left=$((DEADLINE - SECONDS))
  limit=${GPU_STAGE_SECONDS:-${LIMIT[$stage]}} # the variable is for tests
  limit=$((limit < left ? limit : left))
  begin=$SECONDS
  if ((limit < 5)); then
    result="no time left"
  else
    printf '\n=== %s (at most %d s; %d s since the start)\n' "$stage" "$limit" "$SECONDS" | tee -a "$OUTPUT/log.txt"
    export -f "stage_$stage"
    timeout --signal=INT --kill-after=10 "$limit" bash -uo pipefail -c "stage_$stage" 2>&1 | tee -a "$OUTPUT/log.txt"
    status=${PIPESTATUS[0]}
    case $status in
      0) result=passed ;;
      124 | 130 | 137) result="out of time" ;;
      *) result="failed ($status)" ;;
    esac
  fi
  [[ $result == passed ]] || failures=$((failures + 1))
  echo "$stage,$result,$((SECONDS - begin))" >> "$OUTPUT/stages.csv"
done

printf '\n=== summary\n' | tee -a "$OUTPUT/log.txt"
"$PYTHON" benchmarks/gpu_summary.py "$OUTPUT" 2>&1 | tee -a "$OUTPUT/log.txt"
exit $((failures > 0))
