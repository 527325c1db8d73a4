// A product of matrices on tensor cores with a planted fault, which the emulation must find. test_emulation.py runs
// this program:
//
//   matrices FAULT SEED    prints "right", "wrong" or the emulation's error, unless AddressSanitizer aborts it
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../../../csrc/cuda/kernels/tensor_cores.cuh"
#include "../../../csrc/cuda/kernels/warp_sums.cuh"

namespace {

using fastconv::cuda::half;

enum class Fault {
  none,
  missing_wait,
  wait_for_one_group_too_few,
  missing_barrier,
  early_refill,
  wrong_fragment,
  wrong_transpose,
  wrong_row,
  too_little_shared,
  misaligned_copy,
  copy_beyond_input,
  missing_zero_fill,
};
const char* const names[] = {"none",
                             "missing_wait",
                             "wait_for_one_group_too_few",
                             "missing_barrier",
                             "early_refill",
                             "wrong_fragment",
                             "wrong_transpose",
                             "wrong_row",
                             "too_little_shared",
                             "misaligned_copy",
                             "copy_beyond_input",
                             "missing_zero_fill"};

// C (32 x 8) = A (32 x depth) * B (depth x 8). Each of two warps computes 16 rows. Every block computes the same, in
// another order of threads.
constexpr int blocks = 32, rows = 32, columns = 8, depth = 72, chunk_depth = 16, stages = 3;
using Sums = fastconv::cuda::WarpSums<rows, columns, 16, 8>;
constexpr int chunks = (depth + chunk_depth - 1) / chunk_depth;

struct Stage {
  half a[rows][chunk_depth + 8], b[chunk_depth][columns];
};

template <Fault fault>
__device__ void start_chunk(const half* a, const half* b, Stage& stage, int chunk) {
  const int t = static_cast<int>(threadIdx.x);
  const int row = t / 2, d = t % 2 * 8, from_d = chunk * chunk_depth + d;
  const auto copy = [](half* to, const half* from, bool inside) {
    if (fault == Fault::missing_zero_fill && !inside) return;
    fastconv::cuda::copy_async(to, inside ? from : nullptr);
  };
  const half* from = a + row * depth + from_d;
  if (fault == Fault::copy_beyond_input && row == rows - 1) from += 8;
  if (fault == Fault::misaligned_copy && row == 1) from += 1;
  copy(&stage.a[row][d], from, from_d < depth);
  const int b_row = chunk * chunk_depth + t;
  if (t < chunk_depth) copy(stage.b[t], b + b_row * columns, b_row < depth);
}

template <Fault fault>
__device__ void multiply_chunk(const Stage& stage, Sums& sums) {
  using namespace fastconv::cuda;
  const int lane = threadIdx.x % 32, first_row = Sums::first_row();
  uint32_t a[4], b[4];
  load_matrices<false>(a, &stage.a[first_row + lane % 16 + (fault == Fault::wrong_row && lane == 3)][lane / 16 * 8]);
  load_matrices<fault != Fault::wrong_transpose>(b, stage.b[lane % 16]);
  if (fault == Fault::wrong_fragment) std::swap(a[1], a[2]);
  multiply_matrices<half>(sums.sums[0][0], a, b);
}

template <Fault fault>
__global__ void multiply(const half* a, const half* b, float* c) {
  using namespace fastconv::cuda;
  FC_DYNAMIC_SHARED(memory, stages * sizeof(Stage));
  Stage* stage = reinterpret_cast<Stage*>(memory);
  Sums sums;
  for (int chunk = 0; chunk < stages - 1; ++chunk) {
    start_chunk<fault>(a, b, stage[chunk], chunk);
    commit_copies();
  }
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const auto refill = [&] {
      if (chunk + stages - 1 < chunks) {
        start_chunk<fault>(a, b, stage[(chunk + stages - 1) % stages], chunk + stages - 1);
      }
      commit_copies();
    };
    if (fault != Fault::missing_wait) wait_for_copies<stages - 2 + (fault == Fault::wait_for_one_group_too_few)>();
    if (fault == Fault::early_refill) refill();
    if (fault != Fault::missing_barrier) __syncthreads();
    if (fault != Fault::early_refill) refill();
    multiply_chunk<fault>(stage[chunk % stages], sums);
  }
  float* to = c + blockIdx.x * rows * columns;
  sums.for_each_sum([&](int row, int column, float sum) { to[row * columns + column] = sum; });
}

template <Fault fault>
void launch_multiply(const half* a, const half* b, float* c) {
  constexpr size_t bytes = stages * sizeof(Stage) - (fault == Fault::too_little_shared ? 16 : 0);
  FC_LAUNCH_WITH_SHARED(multiply<fault>, dim3(blocks), dim3(Sums::threads), bytes, nullptr, a, b, c);
}

template <size_t... faults>
void launch(size_t fault, std::index_sequence<faults...>, const half* a, const half* b, float* c) {
  static_cast<void>(((fault == faults && (launch_multiply<Fault{faults}>(a, b, c), true)) || ...));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  size_t fault = 0;
  while (std::strcmp(names[fault], arguments[1]) != 0) {
    if (++fault == std::size(names)) return 2;
  }
  fastconv::emulation::set_seed(static_cast<unsigned>(std::atoi(arguments[2])));
  // Sums of small integers are exact in any order.
  std::vector<float> a(rows * depth), b(depth * columns), c(blocks * rows * columns);
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * i % 7);
  for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * i % 5);
  const std::vector<half> half_a(a.begin(), a.end()), half_b(b.begin(), b.end());
  try {
    launch(fault, std::make_index_sequence<std::size(names)>(), half_a.data(), half_b.data(), c.data());
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return 0;
  }
  bool right = true;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      float sum = 0;
      for (int d = 0; d < depth; ++d) sum += a[row * depth + d] * b[d * columns + column];
      for (int block = 0; block < blocks; ++block) right &= c[(block * rows + row) * columns + column] == sum;
    }
  }
  std::puts(right ? "right" : "wrong");
}
