// A matrix product, C[i, j] = sum over d of A[i, d] * B[j, d]. Each block computes one tile of C. The operands are read
// directly from tensors (conv2d_operands.cuh), and an epilogue writes the results.
//
// A block has two buffers in shared memory, each for a chunk of both operands. While it multiplies one chunk, the next
// is read from global memory into registers and then stored in the other buffer. So one barrier per chunk is enough.
// Rows and steps of depth are decoded once per block, into tables in shared memory, and not once per thread. The sums
// are in registers. At the end they overwrite the operands in shared memory, and the epilogue reads them in any order.
//
// Every tile adds up depth in the same order, so results do not depend on the choice of the tile. Depth is cut into
// pieces only if the caller asks for it. Then each piece has its own results.
#pragma once

#include "layout.cuh"

namespace fastconv::cuda {

// The grid of blocks: row tiles x groups x pieces of depth x column tiles. Blocks that differ only in the column tile
// are neighbours, because they read the same rows of A.
struct Tiling {
  int64_t row_tiles, depth, piece_depth;
  int rows_per_tile;  // the tile's rows, rounded down to whole windows
  int column_tiles, groups, pieces;
  // True if neighbouring threads of the scalar path read neighbouring rows. Otherwise, they read neighbouring steps of
  // depth.
  bool a_rows_adjacent, b_rows_adjacent;

  int64_t blocks() const { return row_tiles * column_tiles * groups * pieces; }
};

// The part of the product that a block computes.
struct Part {
  int64_t first_row, first_depth, last_depth;
  int first_column, column_tile, group, piece;

  Part() = default;
  __device__ Part(const Tiling& t, int columns) {
    int64_t rest = blockIdx.x;
    column_tile = static_cast<int>(rest % t.column_tiles);
    rest /= t.column_tiles;
    piece = static_cast<int>(rest % t.pieces);
    rest /= t.pieces;
    group = static_cast<int>(rest % t.groups);
    first_row = rest / t.groups * t.rows_per_tile;
    first_column = column_tile * columns;
    first_depth = piece * t.piece_depth;
    last_depth = first_depth + t.piece_depth < t.depth ? first_depth + t.piece_depth : t.depth;
  }
};

// A row of A is summed in parts of this depth, so that the sum does not depend on the tile.
constexpr int row_sum_depth = 16;

// A tile of fused multiply-adds. Each thread has row_block x column_block sums, in squares of 4 x 4 or less.
template <class Scalar, int row_count, int column_count, int row_block, int column_block, int chunk_depth = 16>
struct FmaTile {
  using T = Scalar;
  using Acc = Accumulator<T>;
  static constexpr int rows = row_count, columns = column_count, depth = chunk_depth;
  static constexpr int row_unit = row_block < 4 ? row_block : 4, column_unit = column_block < 4 ? column_block : 4;
  static constexpr int thread_rows = rows / row_block, thread_columns = columns / column_block;
  static constexpr int threads = thread_rows * thread_columns;
  // double is mainly for gradient checks. Without vectors for it, there are half as many kernels to compile.
  static constexpr int vector = sizeof(T) == 4 ? widest_vector<T> : 1;
  static constexpr bool depth_adjacent = false, has_stages = false;
  // The elements that a thread gathers at once. With few sums, there are registers for more.
  static constexpr int gathers = row_block * column_block <= 4 ? 8 : 4;

  // Rows are adjacent in memory. The padding of 4 per line makes stores along depth use different banks.
  struct Buffer {
    alignas(16) Acc a[depth][rows + 4], b[depth][columns + 4];

    __device__ Acc& at_a(int row, int d) { return a[d][row]; }
    __device__ Acc& at_b(int column, int d) { return b[d][column]; }
  };

  Acc sums[row_block][column_block] = {};

  __device__ static int row(int i) {
    return i / row_unit * (rows / (row_block / row_unit)) + threadIdx.x / thread_columns * row_unit + i % row_unit;
  }
  __device__ static int column(int j) {
    return j / column_unit * (columns / (column_block / column_unit)) + threadIdx.x % thread_columns * column_unit +
           j % column_unit;
  }

  __device__ void multiply(Buffer& buffer) {
#pragma unroll
    for (int d = 0; d < depth; ++d) {
      Vector<Acc, row_unit> a[row_block / row_unit];
      Vector<Acc, column_unit> b[column_block / column_unit];
#pragma unroll
      for (int i = 0; i < row_block / row_unit; ++i) a[i] = load_vector<row_unit>(&buffer.a[d][row(row_unit * i)]);
#pragma unroll
      for (int j = 0; j < column_block / column_unit; ++j) {
        b[j] = load_vector<column_unit>(&buffer.b[d][column(column_unit * j)]);
      }
#pragma unroll
      for (int i = 0; i < row_block; ++i) {
#pragma unroll
        for (int j = 0; j < column_block; ++j) {
          const Acc x = a[i / row_unit].values[i % row_unit], y = b[j / column_unit].values[j % column_unit];
          sums[i][j] = fma(x, y, sums[i][j]);
        }
      }
    }
  }

  template <class F>
  __device__ void for_each_sum(const F& f) const {
#pragma unroll
    for (int i = 0; i < row_block; ++i) {
#pragma unroll
      for (int j = 0; j < column_block; ++j) f(row(i), column(j), sums[i][j]);
    }
  }
};

// A thread's share of a chunk of one operand. It copies V neighbours at a time, rows or steps of depth, from global to
// shared memory. Vectors stay in registers while the previous chunk is multiplied. Single elements would need too many
// registers, so they are stored immediately, while other warps multiply.
template <class Tile, class Operand, int row_count, int V>
struct Share {
  using T = typename Tile::T;
  static constexpr int count = row_count * Tile::depth / (Tile::threads * V);
  static_assert(count * Tile::threads * V == row_count * Tile::depth);

  Vector<T, V> waiting[V > 1 ? count : 1];

  struct Place {
    int row, d;
  };

  __device__ static Place place(int i, bool rows_adjacent) {
    const int index = static_cast<int>(threadIdx.x) + i * Tile::threads;
    const bool by_rows = V > 1 ? !Operand::vectors_along_depth : rows_adjacent;
    if (V > 1 && by_rows && Tile::depth_adjacent) {
      // Vectors of rows are stored element by element. The elements of different depths are neighbours, but those of
      // different rows are in the same bank. So only two lanes share a depth. Together they read a sector of 32 bytes.
      const int two = index / (2 * Tile::depth);
      return {(2 * two + index % 2) * V, index / 2 % Tile::depth};
    }
    if (by_rows) return {index % (row_count / V) * V, index / (row_count / V)};
    return {index / (Tile::depth / V), index % (Tile::depth / V) * V};
  }

  // `to(row, d)` returns an element of the buffer.
  template <class To>
  __device__ void begin(const Operand& operand, const typename Operand::Row* rows,
                        const typename Operand::Column* columns, bool rows_adjacent, const To& to) {
    if constexpr (V == 1) {
#pragma unroll Tile::gathers
      for (int i = 0; i < count; ++i) {
        const Place at = place(i, rows_adjacent);
        to(at.row, at.d) = operand.template load<1>(rows[at.row], columns[at.d]).values[0];
      }
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const Place at = place(i, rows_adjacent);
        waiting[i] = operand.template load<V>(rows[at.row], columns[at.d]);
      }
    }
  }

  template <class To>
  __device__ void finish(const To& to) const {
    if constexpr (V > 1) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const Place at = place(i, false);
        if constexpr (Operand::vectors_along_depth == Tile::depth_adjacent) {
          *reinterpret_cast<Vector<T, V>*>(&to(at.row, at.d)) = waiting[i];
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if constexpr (Operand::vectors_along_depth) {
              to(at.row, at.d + v) = waiting[i].values[v];
            } else {
              to(at.row + v, at.d) = waiting[i].values[v];
            }
          }
        }
      }
    }
  }
};

template <class Operand>
__device__ void decode_rows(const Operand& operand, int64_t first, int count, typename Operand::Row* rows, int size) {
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    rows[i] = i < count ? operand.row(first + i) : Operand::no_row();
  }
}

// Threads first_thread to first_thread + size - 1 decode one column each.
template <class Operand>
__device__ void decode_columns(const Operand& operand, int64_t first, int64_t last, typename Operand::Column* columns,
                               int size, int first_thread) {
  const int i = static_cast<int>(threadIdx.x) - first_thread;
  if (i >= 0 && i < size) columns[i] = first + i < last ? operand.column(first + i) : Operand::no_column();
}

template <class Tile, int V, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::threads, 2) gemm(A a, B b, Epilogue epilogue, Tiling tiling) {
  using Acc = typename Tile::Acc;
  constexpr int rows = Tile::rows, columns = Tile::columns, depth = Tile::depth;
  static_assert(Tile::threads >= 64 && depth <= 32 && rows <= Tile::threads);
  union Memory {
    typename Tile::Buffer buffers[2];
    Acc sums[rows][columns + 1];
  };
  using RowA = typename A::Row;
  using RowB = typename B::Row;
  using ColumnA = typename A::Column;
  using ColumnB = typename B::Column;
  FC_SHARED(Memory, memory, [1]);
  FC_SHARED(RowA, rows_a, [rows]);
  FC_SHARED(RowB, rows_b, [columns]);
  FC_SHARED(ColumnA, columns_a, [2][depth]);
  FC_SHARED(ColumnB, columns_b, [2][depth]);
  typename Tile::Buffer* buffers = memory[0].buffers;

  const Part part(tiling, columns);
  a.enter_group(part.group);
  b.enter_group(part.group);
  decode_rows(a, part.first_row, tiling.rows_per_tile, rows_a, rows);
  decode_rows(b, part.first_column, columns, rows_b, columns);

  const int chunks = static_cast<int>((part.last_depth - part.first_depth + depth - 1) / depth);
  const auto decode = [&](int chunk) {
    const int64_t first = part.first_depth + static_cast<int64_t>(chunk) * depth;
    decode_columns(a, first, part.last_depth, columns_a[chunk % 2], depth, 0);
    decode_columns(b, first, part.last_depth, columns_b[chunk % 2], depth, 32);
  };
  Share<Tile, A, rows, V> share_a;
  Share<Tile, B, columns, V> share_b;
  const auto to_a = [&](int chunk) {
    return [&buffer = buffers[chunk % 2]](int row, int d) -> auto& { return buffer.at_a(row, d); };
  };
  const auto to_b = [&](int chunk) {
    return [&buffer = buffers[chunk % 2]](int column, int d) -> auto& { return buffer.at_b(column, d); };
  };
  const auto begin = [&](int chunk) {
    share_a.begin(a, rows_a, columns_a[chunk % 2], tiling.a_rows_adjacent, to_a(chunk));
    share_b.begin(b, rows_b, columns_b[chunk % 2], tiling.b_rows_adjacent, to_b(chunk));
  };
  const auto finish = [&](int chunk) {
    share_a.finish(to_a(chunk));
    share_b.finish(to_b(chunk));
  };

  Tile tile;
  Acc row_sum = 0;
  decode(0);
  __syncthreads();
  begin(0);
  decode(1);
  finish(0);
  __syncthreads();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const bool more = chunk + 1 < chunks;
    if (more) {
      begin(chunk + 1);
      decode(chunk + 2);
    }
    tile.multiply(buffers[chunk % 2]);
    if (Epilogue::wants_row_sums && part.column_tile == 0 && threadIdx.x < rows) {
      for (int first = 0; first < depth; first += row_sum_depth) {
        // Four shorter sums have a smaller rounding error.
        Acc sums[4] = {};
        for (int d = 0; d < row_sum_depth; ++d) {
          sums[d % 4] += static_cast<Acc>(buffers[chunk % 2].at_a(threadIdx.x, first + d));
        }
        row_sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
      }
    }
    if (more) finish(chunk + 1);
    __syncthreads();
  }

  tile.for_each_sum([&](int row, int column, Acc sum) { memory[0].sums[row][column] = sum; });
  __syncthreads();
  epilogue.template store<columns>(part, memory[0].sums, rows_a);
  if (Epilogue::wants_row_sums && part.column_tile == 0 && threadIdx.x < rows) {
    epilogue.store_row_sum(part, threadIdx.x, row_sum);
  }
}

}  // namespace fastconv::cuda
