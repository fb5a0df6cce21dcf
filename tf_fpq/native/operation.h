// What all operations need: TensorFlow's names, work in blocks on its threads, and functions for
// every width of vectors.

#ifndef TF_FPQ_NATIVE_OPERATION_H_
#define TF_FPQ_NATIVE_OPERATION_H_

#include <algorithm>
#include <cstdint>

#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

// The compiler makes a version for each width of vectors, and the machine chooses when it loads
// them.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace tf_fpq {

using ::tensorflow::OpInputList;
using ::tensorflow::OpKernel;
using ::tensorflow::OpKernelConstruction;
using ::tensorflow::OpKernelContext;
using ::tensorflow::Tensor;
using ::tensorflow::TensorShape;
using ::tensorflow::errors::InvalidArgument;
using ::tensorflow::shape_inference::InferenceContext;

// Elements that one thread takes at a time: 16 KiB of each tensor, less than a core's first cache.
constexpr int64_t kBlock = 4096;

inline int64_t NumBlocks(int64_t total, int64_t block = kBlock) {
  return (total + block - 1) / block;
}

// Places of `channels` elements each that one thread takes at a time.
inline int64_t RowsOfBlock(int64_t channels) { return std::max<int64_t>(1, kBlock / channels); }

// Calls `work(first, count, number)` for all blocks of `total` elements, on TensorFlow's threads.
template <typename Work>
void ForBlocks(OpKernelContext* context, int64_t total, const Work& work, int64_t block = kBlock) {
  const auto& threads = *context->device()->tensorflow_cpu_worker_threads();
  const int64_t cost = 2 * kBlock;  // cycles, from which on a second thread pays
  ::tensorflow::Shard(threads.num_threads, threads.workers, NumBlocks(total, block), cost,
                      [&](int64_t begin, int64_t end) {
                        for (int64_t number = begin; number < end; ++number) {
                          const int64_t first = number * block;
                          work(first, std::min(block, total - first), number);
                        }
                      });
}

}  // namespace tf_fpq

#endif  // TF_FPQ_NATIVE_OPERATION_H_
