#!/usr/bin/env bash
# Check and measure fastconv on a GPU, in at most 8 minutes.
#
#   benchmarks/cuda_device.sh OUT             every part
#   benchmarks/cuda_device.sh OUT PART...     some parts, for example after a fix
#
# Parts, in this order:
#   build     compile the extension in place for this GPU, unless it is built with CUDA already
#   tests     all CUDA tests on the GPU
#   own       MNIST's blocks, fastconv's kernels alone
#   layers    3x3 layers with 64 to 256 channels, each pass of fastconv's kernels alone
#   tensor    the same with FASTCONV_TENSOR_CORES=1, after the tests of these kernels
#   mnist     training of the MNIST CNN, images a second: a step in a CUDA graph, and the loop of fastconv train
#   networks  converted networks, inference and training
#   plan      MNIST's blocks as users get them
#   sanitizer a few tests in compute-sanitizer: races in shared memory, then accesses out of bounds
#
# Each part has a time limit and a log, OUT/PART.log. The measurements are OUT/PART.json and OUT/PART.md, written after
# each row. So a part that hangs or is stopped loses neither its own rows nor the other parts. OUT/summary.md says what
# happened. PYTHON names the interpreter (python3 by default). It needs a CUDA build of torch, pytest and what a build of
# fastconv needs. CUDA_DEVICE_SECONDS is the limit of the whole run (470 by default).
#
# Exit status: 0 if every part succeeded, 1 if one failed or ran out of time, 2 for wrong arguments, 3 without a GPU.
set -u

readonly parts_known="build tests own layers tensor mnist networks plan sanitizer"
readonly usage="usage: benchmarks/cuda_device.sh OUT [PART...], with the parts: $parts_known"

stop() {  # STATUS MESSAGE
  echo "$2" >&2
  exit "$1"
}

[ $# -ge 1 ] || stop 2 "$usage"
case $1 in -*) stop 2 "$usage" ;; esac
out=$1
shift
for part in "$@"; do
  case " $parts_known " in *" $part "*) ;; *) stop 2 "unknown part: $part. $usage" ;; esac
done
chosen=" ${*:-$parts_known} "
python=${PYTHON:-python3}
command -v "$python" > /dev/null || stop 2 "There is no $python. Set PYTHON to an interpreter that has torch."
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out" || stop 2 "cannot create the folder $out"
out=$(cd "$out" && pwd)
cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2> /dev/null \
  || stop 3 "There is no GPU here that torch can use, so nothing was checked."

readonly most_seconds=${CUDA_DEVICE_SECONDS:-470}
status=0

# Runs a command with the time limit of its part, or with the time that is left.
part() {  # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 started=$SECONDS code
  shift 2
  case $chosen in *" $name "*) ;; *) return ;; esac
  local left=$((most_seconds - SECONDS))
  [ "$seconds" -le "$left" ] || seconds=$left
  if [ "$seconds" -le 0 ]; then
    code=124
  else
    timeout --kill-after=5 "$seconds" "$@" > "$out/$name.log" 2>&1
    code=$?
  fi
  case $code in
    0) result=passed ;;
    124 | 137) result="out of time" ;;
    *) result="failed, exit status $code" ;;
  esac
  [ $code -eq 0 ] || status=1
  echo "| $name | $result | $((SECONDS - started)) | $(tail -n 1 "$out/$name.log" 2> /dev/null | tr '|' ' ' | cut -c 1-200) |" \
    | tee -a "$out/summary.md"
}

build() {
  "$python" -c 'from fastconv._ops.library import has_cuda; raise SystemExit(not has_cuda())' && return
  TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')
  export TORCH_CUDA_ARCH_LIST
  FASTCONV_CUDA=1 "$python" setup.py build_ext --inplace
}

# The cases of the emulation run elsewhere. FASTCONV_ALGORITHM=own is set by the tests.
tests() {
  local workers=()
  "$python" -c 'import xdist' 2> /dev/null && workers=(-n 8)
  "$python" -m pytest -q "${workers[@]}" -k 'not emulated' tests/cuda \
    --ignore=tests/cuda/test_functional.py --ignore=tests/cuda/test_emulation.py --ignore=tests/cuda/test_gpu_plan.py
}

# These kernels are off by default.
tensor() {
  export FASTCONV_TENSOR_CORES=1
  "$python" -m pytest -q -k 'not emulated' tests/cuda/test_tensor_cores.py \
    && FASTCONV_ALGORITHM=own "$python" benchmarks/cuda_blocks.py --json "$out/tensor_blocks.json" \
    && "$python" benchmarks/cuda_blocks.py --layers --json "$out/tensor.json"
}

# The emulation finds a missing barrier only if the result changes. racecheck sees the accesses themselves. Kernels run
# many times slower in it, so these are small cases, and this is the last part.
sanitizer() {
  export PATH=$PATH:/usr/local/cuda/bin
  command -v compute-sanitizer || { echo "compute-sanitizer is not on the path"; return; }
  local tool
  local check=(--error-exitcode 9 "$python" -m pytest -q -k 'not emulated')
  for tool in racecheck memcheck; do
    compute-sanitizer --tool $tool "${check[@]}" \
      tests/cuda/test_conv2d_relu_max_pool2d.py::test_nan_and_infinity_are_pooled_as_in_pytorch || return
    FASTCONV_TENSOR_CORES=1 compute-sanitizer --tool $tool "${check[@]}" \
      tests/cuda/test_tensor_cores.py::test_pooled_output_argmax_and_gradients_are_exact || return
  done
}

export -f build tests tensor sanitizer
export python out

printf '# %s\n\n| part | result | seconds | last line |\n|---|---|--:|---|\n' \
  "$("$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)')" > "$out/summary.md"
blocks=(benchmarks/cuda_blocks.py) networks=(benchmarks/cuda_networks.py)
part build 160 bash -c build
part tests 150 bash -c tests
part own 50 env FASTCONV_ALGORITHM=own "$python" "${blocks[@]}" --json "$out/own.json"
part layers 40 "$python" "${blocks[@]}" --layers --json "$out/layers.json"
part tensor 80 bash -c tensor
part mnist 30 "$python" "${networks[@]}" --mnist --json "$out/mnist.json"
part networks 130 "$python" "${networks[@]}" --rounds 7 --calls 3 --json "$out/networks.json"
part plan 50 "$python" "${blocks[@]}" --json "$out/plan.json"
part sanitizer 60 bash -c sanitizer
exit $status
