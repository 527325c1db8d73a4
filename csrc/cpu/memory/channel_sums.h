// Two sums for each channel, over all pixels. The pixels are divided into pieces that depend on the shape alone, and
// the pieces are combined in a fixed order. So the sums are bitwise equal for every number of threads.
#pragma once

#include "channels.h"

namespace fastconv::cpu {

struct ChannelSums {
  std::vector<double> first, second;
};

// The sums that a kernel adds to: one element for each column of its matrix.
struct ColumnSums {
  double *first, *second;
};

// The pieces of a tensor. If the tensor is one matrix, a piece has some of its rows. Otherwise it has one channel of
// some images.
struct ChannelPieces {
  int64_t count;   // of rows or images
  int64_t pieces;  // in all

  explicit ChannelPieces(const ChannelLayout& l) {
    if (l.one_matrix) {
      count = pieces = std::clamp<int64_t>(l.pixels() * l.C / 65536, 1, std::min<int64_t>(64, l.rows()));
    } else {
      count = std::min(l.N, ceil_div(wanted_pieces, l.C));
      pieces = count * l.C;
    }
  }
};

// Calls body(piece, rows or images [first, last), channel). The channel is 0 if the piece has all.
template <class Body>
void for_each_piece(const ChannelLayout& l, const ChannelPieces& pieces, const Body& body) {
  const int64_t size = l.one_matrix ? l.rows() : l.N;
  parallel_for(0, pieces.pieces, ceil_div(grain_size * pieces.pieces, l.pixels() * l.C),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t part = i % pieces.count;
                   body(i, size * part / pieces.count, size * (part + 1) / pieces.count, i / pieces.count);
                 }
               });
}

// Returns the sums over all blocks. body(offset, size, constants, sums) adds a block to the sums of each column.
template <class T, size_t count, class Body>
ChannelSums sum_channels(const ChannelLayout& l, const ChannelConstants<T, count>& constants, const Body& body) {
  const ChannelPieces pieces(l);
  const int64_t most = kernels().conv2d<T>().batch_norm.moment_pixels;
  const auto C = static_cast<size_t>(l.C);
  const size_t columns = l.one_matrix ? static_cast<size_t>(l.columns()) : size_t{plane_columns};
  const ChannelConstants<T, count> repeated_constants = l.repeat > 1 ? repeated(constants, l.repeat) : constants;
  std::vector<double> partial(2 * columns * static_cast<size_t>(pieces.pieces));
  for_each_piece(l, pieces, [&](int64_t piece, int64_t first, int64_t last, int64_t channel) {
    double* sums = partial.data() + 2 * columns * static_cast<size_t>(piece);
    const ColumnSums to{sums, sums + columns};
    if (l.one_matrix) {
      const ColumnConstants<T, count> of_columns(repeated_constants);
      for_each_block_of_rows(l, first, last, most,
                             [&](int64_t at, const MatrixSize& size) { body(at, size, of_columns, to); });
    } else {
      const ColumnConstants<T, count> of_columns(constants, channel, std::min(l.plane, plane_columns));
      for (int64_t n = first; n < last; ++n) {
        for_each_block_of_plane(l, n * l.C + channel, most,
                                [&](int64_t at, const MatrixSize& size) { body(at, size, of_columns, to); });
      }
    }
  });
  ChannelSums total{std::vector<double>(C), std::vector<double>(C)};
  for (size_t piece = 0; piece < static_cast<size_t>(pieces.pieces); ++piece) {
    for (size_t i = 0; i < columns; ++i) {
      const size_t c = (l.one_matrix ? i / static_cast<size_t>(l.repeat) : piece / static_cast<size_t>(pieces.count));
      const size_t at = 2 * columns * piece + i;
      total.first[c] += partial[at], total.second[c] += partial[at + columns];
    }
  }
  return total;
}

// The mean and the sum of the squared differences from it.
struct Moment {
  double pixels = 0, mean = 0, squares = 0;

  // Combines two sets of pixels: Chan, Golub and LeVeque (kernels/batch_norm.h).
  void add(const Moment& other) {
    if (other.pixels == 0) return;
    const double all = pixels + other.pixels, delta = other.mean - mean;
    squares += other.squares + delta * delta * (pixels * other.pixels / all);
    mean += delta * (other.pixels / all);
    pixels = all;
  }
};

// Calls f(channel, value) with all values of these channels. `load` as below.
template <class Load, class F>
void for_each_value(const ChannelLayout& l, const std::vector<size_t>& channels, const Load& load, const F& f) {
  if (l.one_matrix) {
    return for_each_block_of_rows(l, 0, l.rows(), 64, [&](int64_t at, const MatrixSize& size) {
      const auto* row = load(at, size);
      for (int64_t p = 0; p < size.pixels; ++p, row += size.channels) {
        for (const size_t c : channels) {
          const auto* values = row + static_cast<int64_t>(c) * l.repeat;
          for (int64_t i = 0; i < l.repeat; ++i) f(c, static_cast<double>(values[i]));
        }
      }
    });
  }
  for (const size_t c : channels) {
    for (int64_t n = 0; n < l.N; ++n) {
      for_each_block_of_plane(l, n * l.C + static_cast<int64_t>(c), 64, [&](int64_t at, const MatrixSize& size) {
        const auto* values = load(at, size);
        for (int64_t i = 0; i < size.pixels * size.channels; ++i) f(c, static_cast<double>(values[i]));
      });
    }
  }
}

// Computes the moments of these channels in double. They have numbers whose squares overflow in T, infinities or NaN.
template <class Load>
void plain_moments(const ChannelLayout& l, const std::vector<size_t>& channels, const Load& load,
                   ChannelSums& moments) {
  std::vector<double>&mean = moments.first, &squares = moments.second;
  const auto n = static_cast<double>(l.pixels());
  for (const size_t c : channels) mean[c] = squares[c] = 0;
  for_each_value(l, channels, load, [&](size_t c, double value) { mean[c] += value / n; });
  for_each_value(l, channels, load,
                 [&](size_t c, double value) { squares[c] += (value - mean[c]) * (value - mean[c]); });
}

// For each channel, the mean and the sum of the squared differences from it. load(offset, size) returns the values of a
// matrix.
template <class T, class Load>
ChannelSums channel_moments(const ChannelLayout& l, const Load& load) {
  const ChannelPieces pieces(l);
  const BatchNormKernels<T>& kernel = kernels().conv2d<T>().batch_norm;
  const auto C = static_cast<size_t>(l.C);
  // A matrix has one moment for each piece and column. Otherwise each piece has one channel.
  const size_t per_piece = l.one_matrix ? static_cast<size_t>(l.columns()) : 1;
  std::vector<Moment> partial(per_piece * static_cast<size_t>(pieces.pieces));
  for_each_piece(l, pieces, [&](int64_t piece, int64_t first, int64_t last, int64_t channel) {
    const int64_t whole_columns = l.one_matrix ? l.columns() : std::min(l.plane, plane_columns);
    const auto columns = static_cast<size_t>(whole_columns);
    // Two matrices: of a plane, the second one is its last row, which has fewer columns.
    std::vector<double> sums(4 * columns);
    Moments whole{0, sums.data(), sums.data() + columns}, rest{0, whole.squares + columns, whole.squares + 2 * columns};
    int64_t rest_columns = 0;
    const auto add = [&](int64_t at, const MatrixSize& size) {
      const bool is_rest = size.channels != whole_columns;
      if (is_rest) rest_columns = size.channels;
      Moments& to = is_rest ? rest : whole;
      kernel.add_moments({load(at, size), size.channels}, size, to);
      to.pixels += size.pixels;
    };
    if (l.one_matrix) {
      for_each_block_of_rows(l, first, last, kernel.moment_pixels, add);
    } else {
      for (int64_t n = first; n < last; ++n) for_each_block_of_plane(l, n * l.C + channel, kernel.moment_pixels, add);
    }
    Moment* of_piece = partial.data() + per_piece * static_cast<size_t>(piece);
    for (int64_t i = 0; i < whole_columns; ++i) {
      of_piece[l.one_matrix ? i : 0].add({static_cast<double>(whole.pixels), whole.mean[i], whole.squares[i]});
    }
    for (int64_t i = 0; i < rest_columns; ++i) {
      of_piece->add({static_cast<double>(rest.pixels), rest.mean[i], rest.squares[i]});
    }
  });
  ChannelSums total{std::vector<double>(C), std::vector<double>(C)};
  std::vector<size_t> again;
  const auto repeat = static_cast<size_t>(l.repeat), parts = static_cast<size_t>(pieces.count);
  for (size_t c = 0; c < C; ++c) {
    Moment moment;
    for (size_t part = 0; part < parts; ++part) {
      const Moment* from = partial.data() + (l.one_matrix ? part * per_piece + c * repeat : c * parts + part);
      for (size_t i = 0; i < (l.one_matrix ? repeat : 1); ++i) moment.add(from[i]);
    }
    if (!std::isfinite(moment.mean) || !std::isfinite(moment.squares)) again.push_back(c);
    total.first[c] = moment.mean, total.second[c] = moment.squares < 0 ? 0 : moment.squares;  // rounding
  }
  if (!again.empty()) plain_moments(l, again, load, total);
  return total;
}

}  // namespace fastconv::cpu
