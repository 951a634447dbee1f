#!/usr/bin/env bash
# Everything that benchmarks/gpu.sh needs compiled, in one folder, build/gpu-kit: made here, it can be carried to the
# machine that has the GPU, as long as both have the same Python, torch and sources.
#
#   benchmarks/gpu_kit.sh build [PART ...]   PART: plain, spin or programs (default: all)
#   benchmarks/gpu_kit.sh fits               whether the kit is one for these sources and imports under $PYTHON
#   benchmarks/gpu_kit.sh digest             of the sources that the kit depends on
#
#   plain/gru_ext, spin/gru_ext   the package with its extension; in spin each wait in vain ends by a trap
#   checks, latencies, steps      tests/emulator/checks.cu, with such waits, and the programs of benchmarks/cuda
#   record                        digest, commit, Python, torch and nvcc that it was made with
#
# Needs nvcc, and as PYTHON (default: python3) one with a CUDA torch, setuptools and ninja. No GPU need be
# present: without TORCH_CUDA_ARCH_LIST the architecture is that of the GPU, or 9.0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
KIT=build/gpu-kit
SOURCES=build/gpu-kit-sources # a copy for each build: the extension in the checkout may be for another torch
SPIN_LIMIT=2000000
PACKAGE=(setup.py pyproject.toml README.md LICENSE csrc gru_ext)

usage() {
  sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit "$1"
}

digest() {
  find setup.py pyproject.toml csrc gru_ext tests/emulator benchmarks/cuda -type f \
    \( -name '*.py' -o -name '*.pyi' -o -name '*.toml' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) \
    -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

# As gru_ext.measure.machine.commit says it.
commit() {
  local revision
  revision=$(git rev-parse --short=12 HEAD 2> /dev/null) || { echo "${COMMIT:-unknown}"; return; }
  [[ -z $(git status --porcelain -- csrc gru_ext setup.py pyproject.toml 'benchmarks/*.py') ]] || revision+=-dirty
  echo "$revision"
}

architecture() {
  "$PYTHON" -c 'import torch
print("{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "9.0")'
}

# The extension, built in place in a copy of the package, then the package alone.
build_package() { # NAME, then environment variables
  local name=$1 from=$SOURCES/$1
  mkdir -p "$from"
  rm -rf "$from/csrc" "$from/gru_ext"
  find "${PACKAGE[@]}" -type f ! -name '*.so' ! -name '*.pyc' ! -name '_C*.json' \
    -exec cp -a --parents -t "$from" {} +
  (cd "$from" && env "${@:2}" GRU_EXT_FORCE_CUDA=1 "$PYTHON" setup.py --quiet build_ext --inplace)
  mkdir -p "$KIT/$name"
  cp -a "$from/gru_ext" "$KIT/$name"
}

build_programs() {
  local arch=sm_${TORCH_CUDA_ARCH_LIST//./} kernels=() source
  [[ $arch == sm_90 ]] && arch=sm_90a # the letter: instructions that only this architecture has
  local compile=(nvcc -std=c++17 -O3 -lineinfo "-arch=$arch" -Icsrc -Itests)
  for source in csrc/cuda/*.cu csrc/cuda/*.cpp; do
    kernels+=("$SOURCES"/plain/build/temp.*/"${source%.*}.o") # the extension's, which know no torch
  done
  "${compile[@]}" -DGRU_EXT_SPIN_LIMIT=$SPIN_LIMIT tests/emulator/checks.cu -o "$KIT/checks"
  "${compile[@]}" benchmarks/cuda/latencies.cu -o "$KIT/latencies"
  "${compile[@]}" benchmarks/cuda/steps.cu "${kernels[@]}" -o "$KIT/steps"
}

build() {
  export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(architecture)}
  local part
  rm -rf "$KIT" # nothing of an earlier one stays; $SOURCES keeps the objects
  mkdir -p "$KIT"
  for part in "$@"; do
    case $part in
      plain) build_package plain ;;
      spin) build_package spin "GRU_EXT_SPIN_LIMIT=$SPIN_LIMIT" ;;
      programs) build_programs ;;
      *) usage 2 >&2 ;;
    esac
  done
  {
    echo "digest $(digest)"
    echo "commit $(commit)"
    echo "architecture $TORCH_CUDA_ARCH_LIST"
    "$PYTHON" -c 'import platform, torch; print("Python", platform.python_version(), "torch", torch.__version__)'
    nvcc --version | tail -n 1
  } > "$KIT/record"
}

# Says why not.
fits() {
  [[ -f $KIT/record ]] || { echo "there is no kit in $KIT"; return 1; }
  [[ $(sed -n 's/^digest //p' "$KIT/record") == "$(digest)" ]] || { echo "the kit is one for other sources"; return 1; }
  PYTHONPATH=$PWD/$KIT/plain PYTHONSAFEPATH=1 "$PYTHON" -m gru_ext info || { echo "the kit does not import"; return 1; }
  cat "$KIT/record"
}

case ${1:-} in
  build) shift; (($#)) || set -- plain spin programs; build "$@" ;;
  fits) fits ;;
  digest) digest ;;
  -h | --help) usage 0 ;;
  *) usage 2 >&2 ;;
esac
