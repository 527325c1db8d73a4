// A stand-in for libtorch: the C functions of torch's stable ABI that csrc/cpu calls, on the CPU and without autograd.
// So the operators of an Arm build run without an Arm build of torch. torch's own headers declare these functions.
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Array {
  std::shared_ptr<char> memory;  // null: the memory belongs to somebody else
  char* data;
  std::vector<int64_t> sizes, strides;
  int32_t dtype;
};

Array& of(AtenTensorHandle handle) { return *reinterpret_cast<Array*>(handle); }
AtenTensorHandle handle_of(Array array) { return reinterpret_cast<AtenTensorHandle>(new Array(std::move(array))); }

// The numbers of c10::ScalarType.
enum : int32_t { uint8 = 0, int8, int16, int32, int64, half, float32, float64, bfloat16 = 15 };

size_t size_of(int32_t dtype) {
  switch (dtype) {
    case uint8:
    case int8:
      return 1;
    case int32:
    case float32:
      return 4;
    case int64:
    case float64:
      return 8;
    default:
      return 2;
  }
}

int64_t count(const std::vector<int64_t>& sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

Array allocate(std::vector<int64_t> sizes, std::vector<int64_t> strides, int32_t dtype) {
  const size_t bytes = static_cast<size_t>(count(sizes)) * size_of(dtype) + 64;
  std::shared_ptr<char> memory(new char[bytes], std::default_delete<char[]>());
  std::memset(memory.get(), 0xff, bytes);  // NaN, which exposes results that are never written
  return {memory, memory.get(), std::move(sizes), std::move(strides), dtype};
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  const auto place = [&](size_t d) { strides[d] = step, step *= sizes[d] > 1 ? sizes[d] : 1; };
  if (channels_last) {
    for (const size_t d : {1, 3, 2, 0}) place(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) place(d);
  }
  return strides;
}

void copy(const Array& to, const Array& from, size_t d = 0, int64_t to_at = 0, int64_t from_at = 0) {
  const size_t bytes = size_of(from.dtype);
  if (d == to.sizes.size()) {
    if (to.dtype == from.dtype) {
      std::memcpy(to.data + static_cast<size_t>(to_at) * bytes, from.data + static_cast<size_t>(from_at) * bytes,
                  bytes);
    }
    return;
  }
  for (int64_t i = 0; i < to.sizes[d]; ++i)
    copy(to, from, d + 1, to_at + i * to.strides[d], from_at + i * from.strides[d]);
}

}  // namespace

extern "C" {

#define CONSTANT(name, value) \
  int32_t aoti_torch_##name() { return value; }
CONSTANT(dtype_uint8, uint8)
CONSTANT(dtype_int8, int8)
CONSTANT(dtype_int16, int16)
CONSTANT(dtype_int32, int32)
CONSTANT(dtype_int64, int64)
CONSTANT(dtype_float16, half)
CONSTANT(dtype_float32, float32)
CONSTANT(dtype_float64, float64)
CONSTANT(dtype_bfloat16, bfloat16)
CONSTANT(dtype_complex32, 8)
CONSTANT(dtype_complex64, 9)
CONSTANT(dtype_complex128, 10)
CONSTANT(dtype_bool, 11)
CONSTANT(dtype_float8_e5m2, 23)
CONSTANT(dtype_float8_e4m3fn, 24)
CONSTANT(dtype_float8_e5m2fnuz, 25)
CONSTANT(dtype_float8_e4m3fnuz, 26)
CONSTANT(dtype_uint16, 27)
CONSTANT(dtype_uint32, 28)
CONSTANT(dtype_uint64, 29)
CONSTANT(device_type_cpu, 0)
CONSTANT(device_type_cuda, 1)
CONSTANT(device_type_meta, 2)
CONSTANT(device_type_mps, 3)
CONSTANT(device_type_privateuse1, 4)
CONSTANT(device_type_xpu, 5)
CONSTANT(layout_strided, 0)
CONSTANT(memory_format_contiguous_format, 0)
CONSTANT(memory_format_preserve_format, 1)
CONSTANT(memory_format_channels_last, 2)
CONSTANT(memory_format_channels_last_3d, 3)

uint64_t aoti_torch_abi_version() { return TORCH_ABI_VERSION; }
size_t aoti_torch_dtype_element_size(int32_t dtype) { return size_of(dtype); }

#define GET(name, Type, expression)                                          \
  AOTITorchError aoti_torch_get_##name(AtenTensorHandle handle, Type* ret) { \
    Array& array = of(handle);                                               \
    *ret = expression;                                                       \
    return 0;                                                                \
  }
GET(dim, int64_t, static_cast<int64_t>(array.sizes.size()))
GET(numel, int64_t, count(array.sizes))
GET(sizes, int64_t*, array.sizes.data())
GET(strides, int64_t*, array.strides.data())
GET(dtype, int32_t, array.dtype)
GET(device_type, int32_t, (static_cast<void>(array), 0))
GET(device_index, int32_t, (static_cast<void>(array), -1))

AOTITorchError aoti_torch_get_size(AtenTensorHandle handle, int64_t d, int64_t* ret) {
  *ret = of(handle).sizes.at(static_cast<size_t>(d));
  return 0;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle handle, int64_t d, int64_t* ret) {
  *ret = of(handle).strides.at(static_cast<size_t>(d));
  return 0;
}
AOTITorchError aoti_torch_is_defined(AtenTensorHandle handle, bool* ret) {
  *ret = handle != nullptr;
  return 0;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle handle, bool* ret) {
  const Array& array = of(handle);
  const std::vector<int64_t> expected = dense_strides(array.sizes, false);
  *ret = true;
  for (size_t d = 0; d < expected.size(); ++d) {
    if (array.sizes[d] != 1 && array.strides[d] != expected[d]) *ret = false;
  }
  return 0;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle handle, const void** ret) {
  *ret = of(handle).data;
  return 0;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle handle, void** ret) {
  *ret = of(handle).data;
  return 0;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle handle, AtenTensorHandle* ret) {
  *ret = handle_of(of(handle));
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle handle) {
  delete &of(handle);
  return 0;
}
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* ret) {
  *ret = handle_of(allocate({sizes, sizes + dim}, {strides, strides + dim}, dtype));
  return 0;
}
AOTITorchError aoti_torch_create_tensor_from_blob_v2(void* data, int64_t dim, const int64_t* sizes,
                                                     const int64_t* strides, int64_t offset, int32_t dtype, int32_t,
                                                     int32_t, AtenTensorHandle* ret, int32_t, const uint8_t*, int64_t) {
  char* at = static_cast<char*>(data) + static_cast<size_t>(offset) * size_of(dtype);
  *ret = handle_of({nullptr, at, {sizes, sizes + dim}, {strides, strides + dim}, dtype});
  return 0;
}
AOTITorchError aoti_torch_aten_narrow(AtenTensorHandle handle, int64_t dim, int64_t start, int64_t length,
                                      AtenTensorHandle* ret) {
  Array part = of(handle);
  const size_t d = static_cast<size_t>(dim);
  part.data += static_cast<size_t>(start * part.strides[d]) * size_of(part.dtype);
  part.sizes[d] = length;
  *ret = handle_of(std::move(part));
  return 0;
}

// The caller gives up the tensors in the stack and gets a new one.
AOTITorchError torch_call_dispatcher(const char* name, const char*, StableIValue* stack, uint64_t) {
  using torch::stable::Tensor;
  const Tensor self = torch::stable::detail::to<Tensor>(stack[0]);
  const Array& from = of(self.get());
  const std::string called = name;
  if (called == "aten::contiguous") {
    const bool channels_last = torch::stable::detail::to<int32_t>(stack[1]) == 2;
    Array result = allocate(from.sizes, dense_strides(from.sizes, channels_last), from.dtype);
    copy(result, from);
    stack[0] = torch::stable::detail::from(Tensor(handle_of(result)));
    return 0;
  }
  if (called == "aten::copy_") {
    const Tensor source = torch::stable::detail::to<Tensor>(stack[1]);
    if (of(source.get()).dtype == from.dtype) {
      copy(from, of(source.get()));
      stack[0] = torch::stable::detail::from(self);
      return 0;
    }
  }
  std::fprintf(stderr, "the stand-in for torch lacks %s for these dtypes\n", name);
  return 1;
}

AOTITorchError torch_get_num_threads(uint32_t* threads) {
  *threads = 2;
  return 0;
}

// Two threads, so that each has its own workspace and its own part of the work.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc function, void* context) {
  if (end <= begin) return 0;
  const int64_t middle = begin + (end - begin) / 2;
  if (end - begin <= grain || middle == begin) {
    function(begin, end, context);
    return 0;
  }
  std::thread other([&] { function(begin, middle, context); });
  function(middle, end, context);
  other.join();
  return 0;
}

}  // extern "C"
