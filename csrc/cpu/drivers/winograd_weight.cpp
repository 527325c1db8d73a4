// Winograd's gradient of the weight (kernels/winograd_weight.h): tiles are transformed and multiplied, and the sums of
// all tiles are transformed to the weight. There are two ways to divide the work:
//   pieces: each piece of the tiles has sums of its own, if they are small. One thread transforms and multiplies a part
//           of a piece at a time, which stays in its second-level cache.
//   frequencies: there is one set of sums. All threads transform a part of the tiles, then each multiplies some of the
//           frequencies.
// Neither depends on the number of threads.
#include <atomic>

#include "tiling.h"
#include "weight_sums.h"

namespace fastconv::cpu {
namespace {

// The largest sums of one piece and of all pieces, in bytes.
constexpr int64_t piece_bytes = 512 << 10, all_pieces_bytes = 4 << 20;
// The transformed tiles of a part have about this many bytes. They stay in the cache of one thread, or in all caches.
constexpr int64_t part_of_piece_bytes = 384 << 10, part_bytes = 8 << 20;

template <class T>
class WeightGradient {
 public:
  WeightGradient(const Conv2dShape& s, const WinogradTileKind& kind, const Tensor& grad_output, const Tensor& input)
      : s_(s),
        kind_(kind),
        x_(to_nhwc<T>(input)),
        g_(to_nhwc<T>(grad_output)),
        blocks_(channel_blocks<T>(s, s.K)),
        tiles_(s.N * kind.per_image()),
        frequencies_(kind.frequencies()) {
    const int64_t bytes = frequencies_ * part_of(0, 1).product_step * static_cast<int64_t>(sizeof(T));
    by_pieces_ = bytes <= piece_bytes;
    const int64_t affordable = std::min({all_pieces_bytes / std::max<int64_t>(bytes, 1), wanted_pieces, tiles_});
    for (pieces_ = 1; by_pieces_ && 2 * pieces_ <= affordable;) pieces_ *= 2;
    part_tiles_ = part_tiles(by_pieces_ ? part_of_piece_bytes : part_bytes);
    sums_ = workspace<T>(Workspace::winograd_weight, pieces_ * piece_size());
  }

  // Writes dw as [r, s, c][K], and the gradient of the bias. Returns whether all are finite.
  bool run(const WeightSums<T>& to) {
    bias_sums_ = by_pieces_ ? pieces_ : ceil_div(std::min(part_tiles_, tiles_), unit_tiles);
    bias_ = workspace<T>(Workspace::phase_weight, bias_sums_ * s_.K);
    std::memset(bias_, 0, static_cast<size_t>(bias_sums_ * s_.K) * sizeof(T));
    by_pieces_ ? sum_pieces() : sum_frequencies();
    add_up(bias_, s_.K, bias_sums_, s_.K, to.bias);
    std::atomic<bool> finite{true};
    parallel_for(0, s_.C, 4, [&](int64_t begin, int64_t end) {
      if (!kernel().finish_weight(s_, part_of(0, 1), begin, end, to.weight)) finite = false;
    });
    return finite;
  }

 private:
  static constexpr int64_t unit_tiles = 16;

  static const WinogradKernels<T>& kernel() { return kernels().conv2d<T>().winograd; }

  int64_t part_tiles(int64_t bytes) const {
    return std::max<int64_t>(32, bytes / (frequencies_ * (s_.C + s_.K) * static_cast<int64_t>(sizeof(T))));
  }

  WinogradSums<T> part_of(int64_t first, int64_t tiles) const {
    WinogradSums<T> sums{};
    sums.kind = kind_, sums.first_tile = first, sums.tiles = tiles, sums.product = sums_;
    kernel().set_sum_steps(s_, sums);
    return sums;
  }

  int64_t piece_size() const { return frequencies_ * part_of(0, 1).product_step; }

  void use_workspace(WinogradSums<T>& sums, Workspace x, Workspace gradient) const {
    sums.x = workspace<T>(x, frequencies_ * sums.x_step);
    sums.gradient = workspace<T>(gradient, frequencies_ * sums.gradient_step);
  }

  void transform(const WinogradSums<T>& sums, int64_t first, int64_t last, T* bias) const {
    kernel().transform_tiles(s_, sums, first, last, data<T>(x_), data<T>(g_), bias);
  }

  void multiply(const WinogradSums<T>& sums, int64_t i) const {
    kernel().multiply_tiles(s_, sums, i / blocks_.count(), i % blocks_.count());
  }

  void sum_pieces() const {
    parallel_for_each(pieces_, [&](int64_t piece) {
      const int64_t first = tiles_ * piece / pieces_, last = tiles_ * (piece + 1) / pieces_;
      for (int64_t tile = first; tile < last; tile += part_tiles_) {
        WinogradSums<T> sums = part_of(tile, std::min(part_tiles_, last - tile));
        use_workspace(sums, Workspace::input_tile, Workspace::output_tile);
        sums.product += piece * piece_size(), sums.overwrite = tile == first;
        transform(sums, 0, sums.tiles, bias_ + piece * s_.K);
        for (int64_t i = 0; i < frequencies_ * blocks_.count(); ++i) multiply(sums, i);
      }
    });
    const int64_t size = piece_size();
    parallel_for(0, size, grain_size,
                 [&](int64_t begin, int64_t end) { add_up(sums_ + begin, size, pieces_, end - begin, sums_ + begin); });
  }

  void sum_frequencies() const {
    for (int64_t tile = 0; tile < tiles_; tile += part_tiles_) {
      WinogradSums<T> sums = part_of(tile, std::min(part_tiles_, tiles_ - tile));
      use_workspace(sums, Workspace::whole_input, Workspace::whole_gradient);
      sums.overwrite = tile == 0;
      parallel_for_each(ceil_div(sums.tiles, unit_tiles), [&](int64_t i) {
        transform(sums, i * unit_tiles, std::min(sums.tiles, (i + 1) * unit_tiles), bias_ + i * s_.K);
      });
      parallel_for_each(frequencies_ * blocks_.count(), [&](int64_t i) { multiply(sums, i); });
    }
  }

  const Conv2dShape s_;
  const WinogradTileKind kind_;
  const Tensor x_, g_;
  const Blocks blocks_;
  const int64_t tiles_, frequencies_;
  bool by_pieces_;
  int64_t pieces_, part_tiles_, bias_sums_;
  T *sums_ = nullptr, *bias_ = nullptr;
};

}  // namespace

template <class T>
void winograd_backward_weight(const Conv2dShape& s, const WinogradCut& cut, const Tensor& grad_output,
                              const Tensor& input, const Tensor& grad_weight, const Tensor& grad_bias) {
  const Pieces<T> dw(s, 1);
  // The transforms spread an infinity or NaN over all taps.
  const bool finite = WeightGradient<T>(s, cut.kinds[0], grad_output, input).run(dw.at(0, s.taps() * s.K));
  if (!finite) return direct_backward_weight<T>(s, grad_output, input, grad_weight, grad_bias);
  dw.finish_rsck(s, grad_weight, grad_bias);
}

#define FASTCONV_INSTANTIATE(T)                                                                                   \
  template void winograd_backward_weight<T>(const Conv2dShape&, const WinogradCut&, const Tensor&, const Tensor&, \
                                            const Tensor&, const Tensor&);
FASTCONV_INSTANTIATE(float)
FASTCONV_INSTANTIATE(double)

}  // namespace fastconv::cpu
