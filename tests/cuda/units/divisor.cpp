// C functions that call the Divisor of csrc/cuda/kernels/divisor.cuh, for test_divisor.py.
#include "../../../csrc/cuda/kernels/divisor.cuh"

using fastconv::cuda::Divisor;

extern "C" {

void divide_64(const int64_t* n, const int64_t* divisors, int64_t* quotients, int64_t* remainders, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const Divisor by(divisors[i]);
    quotients[i] = by.divide(n[i]);
    remainders[i] = by.remainder(n[i], quotients[i]);
  }
}

void divide_32(const int* n, const int64_t* divisors, int* quotients, int64_t count) {
  for (int64_t i = 0; i < count; ++i) quotients[i] = Divisor(divisors[i]).divide(n[i]);
}

}  // extern "C"
