// The matrix product of gemm.cuh on the tensor cores of sm_80 and later. Operands, epilogues and grid are the same.
//
// Shared memory has three stages, each for a chunk of both operands. While a block multiplies one chunk, the next two
// are on their way (cp.async). So one barrier per chunk is enough. It shows all threads the chunk that has arrived, and
// it shows that the stage of the previous chunk is free.
//
// An operand is copied in one of three ways:
//
//   cp.async      vectors of 16 bytes that are adjacent in a channels_last tensor
//   registers     vectors of 16 bytes that are computed (PooledGradient)
//   gathered      single elements, for every other layout and number of channels. A thread gathers the elements of a
//                 vector, which is then one store to shared memory. Neighbouring threads read neighbouring pixels in
//                 forward and backward_data, and neighbouring steps of depth (pixels) in backward_weight.
//
// Depth is a list of taps (r, s, c), decoded element by element if elements are gathered. It is filled with zeros up to
// a whole chunk. So any number of channels uses tensor cores: 27 taps of a 3x3 convolution of 3 channels take one chunk
// of 32. Padding the channels to 8 would take 72.
//
// The sums are in registers. At the end they go through shared memory, 64 columns at a time, to the epilogue.
#pragma once

#include "gemm.cuh"
#include "tensor_tile.cuh"

namespace fastconv::cuda {

constexpr int tensor_stages = 3;

// A thread's share of the copies of one operand. V is 1 if elements are gathered.
template <class Tile, class Operand, int row_count, int V>
struct TensorShare {
  using T = typename Tile::T;
  using Chunk = OperandChunk<T, row_count, Operand::vectors_along_depth>;
  static constexpr bool along_depth = Operand::vectors_along_depth, is_async = V > 1 && Operand::has_addresses;
  static constexpr int width = Tile::vector, count = row_count * Tile::depth / (Tile::threads * width);
  static_assert(count * Tile::threads * width == row_count * Tile::depth && (V == 1 || V == width));

  Vector<T, width> waiting[is_async ? 1 : count];

  struct Place {
    int row, d;
  };

  // Neighbouring threads copy neighbours in memory. If elements are gathered, such neighbours are in different vectors.
  __device__ static Place place(int i) {
    constexpr int vectors_by_depth = Tile::depth / width, vectors_by_rows = row_count / width;
    const int index = static_cast<int>(threadIdx.x) + i * Tile::threads;
    if constexpr (along_depth) {
      return V == 1 ? Place{index % row_count, index / row_count * width}
                    : Place{index / vectors_by_depth, index % vectors_by_depth * width};
    } else {
      return V == 1 ? Place{index / Tile::depth * width, index % Tile::depth}
                    : Place{index % vectors_by_rows * width, index / vectors_by_rows};
    }
  }

  __device__ void begin(const Operand& operand, const typename Operand::Row* rows,
                        const typename Operand::Column* columns, Chunk& to) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const Place at = place(i);
      if constexpr (is_async) {
        copy_async(to.at(at.row, at.d), operand.at(rows[at.row], columns[at.d]));
      } else if constexpr (V > 1) {
        waiting[i] = operand.template load<V>(rows[at.row], columns[at.d]);
      } else {
#pragma unroll
        for (int v = 0; v < width; ++v) {
          const int row = along_depth ? at.row : at.row + v, d = along_depth ? at.d + v : at.d;
          waiting[i].values[v] = operand.template load<1>(rows[row], columns[d]).values[0];
        }
      }
    }
  }

  __device__ void finish(Chunk& to) const {
    if constexpr (!is_async) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const Place at = place(i);
        *reinterpret_cast<Vector<T, width>*>(to.at(at.row, at.d)) = waiting[i];
      }
    }
  }
};

// The dynamic shared memory of a block.
template <class Tile, class A, class B>
struct TensorMemory {
  // An odd number of floats per line, so that rows of a column are in different banks. With 5, the 32 lanes store to 26
  // banks. With 1, they would store to 14.
  static constexpr int slab_columns = Tile::columns < 64 ? Tile::columns : 64, padding = 5;

  struct Stage {
    OperandChunk<typename Tile::T, Tile::rows, A::vectors_along_depth> a;
    OperandChunk<typename Tile::T, Tile::columns, B::vectors_along_depth> b;
  };
  union {
    Stage stages[tensor_stages];
    float sums[Tile::rows][slab_columns + padding];
  };
};

// The chunks of a block: one is multiplied while the next two are loaded.
template <class Tile, int V, class A, class B, class Epilogue>
struct TensorBlock {
  using Memory = TensorMemory<Tile, A, B>;
  static constexpr int depth = Tile::depth;

  const A& a;
  const B& b;
  const Part& part;
  Memory& memory;
  const typename A::Row* rows_a;
  const typename B::Row* rows_b;
  typename A::Column (*columns_a)[depth];
  typename B::Column (*columns_b)[depth];
  TensorShare<Tile, A, Tile::rows, V> share_a;
  TensorShare<Tile, B, Tile::columns, V> share_b;

  __device__ int chunks() const { return static_cast<int>((part.last_depth - part.first_depth + depth - 1) / depth); }

  __device__ void decode(int chunk) {
    const int64_t first = part.first_depth + static_cast<int64_t>(chunk) * depth;
    decode_columns(a, first, part.last_depth, columns_a[chunk % tensor_stages], depth, 0);
    decode_columns(b, first, part.last_depth, columns_b[chunk % tensor_stages], depth, 32);
  }

  // Every thread commits a group for each chunk, also for chunks that do not exist. So the groups to wait for are the
  // same for all chunks.
  __device__ void begin(int chunk) {
    if (chunk < chunks()) {
      const int stage = chunk % tensor_stages;
      share_a.begin(a, rows_a, columns_a[stage], memory.stages[stage].a);
      share_b.begin(b, rows_b, columns_b[stage], memory.stages[stage].b);
    }
    commit_copies();
  }

  __device__ void finish(int chunk) {
    if (chunk >= chunks()) return;
    typename Memory::Stage& stage = memory.stages[chunk % tensor_stages];
    share_a.finish(stage.a);
    share_b.finish(stage.b);
  }

  // Adds up the elements of one row of A.
  __device__ float row_sum(int chunk) {
    // Four shorter sums have a smaller rounding error.
    float sums[4] = {};
    for (int d = 0; d < depth; ++d) {
      sums[d % 4] += static_cast<float>(*memory.stages[chunk % tensor_stages].a.at(threadIdx.x, d));
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

// cp.async needs no registers for the copied values. Otherwise, fewer blocks run at once, and each has more registers.
template <class Tile, int V, class A, class B>
constexpr int tensor_blocks = (V > 1 && A::has_addresses && B::has_addresses ? 512 : 384) / Tile::threads;

template <class Tile, int V, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::threads, (tensor_blocks<Tile, V, A, B>))
    tensor_gemm(A a, B b, Epilogue epilogue, Tiling tiling) {
#if FC_HAS_TENSOR_CORES
  constexpr int rows = Tile::rows, columns = Tile::columns, depth = Tile::depth;
  static_assert(Tile::threads >= 64 && depth <= 32 && rows <= Tile::threads);
  using Memory = TensorMemory<Tile, A, B>;
  using RowA = typename A::Row;
  using RowB = typename B::Row;
  using ColumnA = typename A::Column;
  using ColumnB = typename B::Column;
  FC_DYNAMIC_SHARED(bytes, sizeof(Memory));
  FC_SHARED(RowA, rows_a, [rows]);
  FC_SHARED(RowB, rows_b, [columns]);
  FC_SHARED(ColumnA, columns_a, [tensor_stages][depth]);
  FC_SHARED(ColumnB, columns_b, [tensor_stages][depth]);
  Memory& memory = *reinterpret_cast<Memory*>(bytes);

  // In shared memory, because registers are scarce.
  FC_SHARED(Part, parts, [1]);
  if (threadIdx.x == 0) parts[0] = Part(tiling, columns);
  __syncthreads();
  const Part& part = parts[0];
  a.enter_group(part.group);
  b.enter_group(part.group);
  decode_rows(a, part.first_row, tiling.rows_per_tile, rows_a, rows);
  decode_rows(b, part.first_column, columns, rows_b, columns);
  TensorBlock<Tile, V, A, B, Epilogue> block{a, b, part, memory, rows_a, rows_b, columns_a, columns_b, {}, {}};
  for (int chunk = 0; chunk < tensor_stages; ++chunk) block.decode(chunk);
  __syncthreads();
  for (int chunk = 0; chunk < tensor_stages - 1; ++chunk) {
    block.begin(chunk);
    block.finish(chunk);
  }

  Tile tile;
  float row_sum = 0;
  const bool has_row_sum = Epilogue::wants_row_sums && part.column_tile == 0 && threadIdx.x < rows;
  const int chunks = block.chunks();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int next = chunk + tensor_stages - 1;
    wait_for_copies<tensor_stages - 2>();
    __syncthreads();
    block.begin(next);
    block.decode(next + 1);
    tile.multiply(memory.stages[chunk % tensor_stages].a, memory.stages[chunk % tensor_stages].b);
    if (has_row_sum) row_sum += block.row_sum(chunk);
    block.finish(next);
  }
  wait_for_copies<0>();

  for (int first = 0; first < columns; first += Memory::slab_columns) {
    __syncthreads();
    tile.for_each_sum([&](int row, int column, float sum) {
      if (column >= first && column < first + Memory::slab_columns) memory.sums[row][column - first] = sum;
    });
    __syncthreads();
    Part slab = part;
    slab.first_column += first;
    epilogue.template store<Memory::slab_columns>(slab, memory.sums, rows_a);
  }
  if (has_row_sum) epilogue.store_row_sum(part, threadIdx.x, row_sum);
#endif
}

}  // namespace fastconv::cuda
