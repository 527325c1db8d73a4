// A kernel with a planted fault, which the emulation must find. test_emulation.py runs this program:
//
//   faults FAULT SEED    prints "right", "wrong" or the emulation's error, unless AddressSanitizer aborts it
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "../../../csrc/cuda/kernels/platform.cuh"

namespace {

using fastconv::cuda::Stream;

enum class Fault {
  none,
  missing_barrier,
  missing_last_barrier,
  divergent_barrier,
  two_barriers,
  store_beyond_shared,
  store_beyond_output,
  load_beyond_input,
  unwritten_shared,
  absent_lane,
};
const char* const names[] = {"none",
                             "missing_barrier",
                             "missing_last_barrier",
                             "divergent_barrier",
                             "two_barriers",
                             "store_beyond_shared",
                             "store_beyond_output",
                             "load_beyond_input",
                             "unwritten_shared",
                             "absent_lane"};

constexpr int threads = 96, tile = 96;

// y[block] = sum over the values of the block's `tiles` tiles of x: each value times its right neighbour in the tile.
template <Fault fault>
__global__ void products(const float* x, float* y, int tiles) {
  FC_SHARED(float, values, [tile]);
  FC_SHARED(float, sums, [threads / 32]);
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = 0; i < tiles; ++i) {
    const float* from = x + (static_cast<int64_t>(blockIdx.x) * tiles + i) * tile;
    if (!(fault == Fault::unwritten_shared && t == 5)) {
      values[t + (fault == Fault::store_beyond_shared)] = from[t + (fault == Fault::load_beyond_input)];
    }
    if (fault == Fault::two_barriers) {
      if (t < 64) {
        __syncthreads();
      } else {
        __syncthreads();
      }
    } else if (fault != Fault::missing_barrier) {
      __syncthreads();
    }
    sum += values[t] * values[(t + 1) % tile];
    if (fault != Fault::missing_last_barrier) __syncthreads();
  }
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_down_sync(fault == Fault::absent_lane && t < 32 ? 0xffffu : ~0u, sum, step);
  }
  if (t % 32 == 0) sums[t / 32] = sum;
  if (fault == Fault::divergent_barrier && t >= 64) return;
  __syncthreads();
  if (t == 0) y[blockIdx.x + (fault == Fault::store_beyond_output)] = sums[0] + sums[1] + sums[2];
}

template <Fault fault>
void launch_products(const float* x, float* y, int blocks, int tiles, Stream stream) {
  FC_LAUNCH(products<fault>, dim3(blocks), dim3(threads), stream, x, y, tiles);
}

using Launch = void (*)(const float*, float*, int, int, Stream);
const Launch launches[] = {
    launch_products<Fault::none>,
    launch_products<Fault::missing_barrier>,
    launch_products<Fault::missing_last_barrier>,
    launch_products<Fault::divergent_barrier>,
    launch_products<Fault::two_barriers>,
    launch_products<Fault::store_beyond_shared>,
    launch_products<Fault::store_beyond_output>,
    launch_products<Fault::load_beyond_input>,
    launch_products<Fault::unwritten_shared>,
    launch_products<Fault::absent_lane>,
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  size_t fault = 0;
  while (std::strcmp(names[fault], arguments[1]) != 0) {
    if (++fault == std::size(names)) return 2;
  }
  fastconv::emulation::set_seed(static_cast<unsigned>(std::atoi(arguments[2])));
  constexpr int blocks = 5, tiles = 3;
  // Sums of small integers are exact in any order.
  std::vector<float> x(blocks * tiles * tile), y(blocks);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i * i % 7);
  try {
    launches[fault](x.data(), y.data(), blocks, tiles, nullptr);
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
    return 0;
  }
  bool right = true;
  for (int block = 0; block < blocks; ++block) {
    float expected = 0;
    for (int i = 0; i < tiles * tile; ++i) {
      const float* from = x.data() + (block * tiles + i / tile) * tile;
      expected += from[i % tile] * from[(i + 1) % tile];
    }
    right &= y[block] == expected;
  }
  std::puts(right ? "right" : "wrong");
}
