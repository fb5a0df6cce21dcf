// Uniform noise added to a tensor in one pass: the numbers of tf.random.stateless_uniform.
//
//     y = max(x, 0) + (u - 0.5) * step      if `relu`, else x in place of max(x, 0)
//
// `u` are the numbers that TensorFlow's Philox 4x32-10 generator makes of `key` and `counter`, four
// for each count. J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, *Parallel Random Numbers: As
// Easy as 1, 2, 3*, SC 2011. Here sixteen counts are computed at once.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tf_fpq/native/operation.h"

namespace tf_fpq {
namespace {

constexpr int kLanes = 16;   // counts that are computed at once
constexpr int kNumbers = 4;  // random numbers of a count
constexpr int kRounds = 10;  // section 3.3 of the paper, as the four constants
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

struct Philox {
  uint64_t key, low, high;  // `low` and `high` are a counter of 128 bits
};

// 23 random bits behind the exponent of the numbers from 1 to 2.
inline uint32_t OneToTwo(uint32_t random) { return 0x3F800000u | (random & 0x7FFFFFu); }

// The numbers of `kLanes` counts from `count` on, in the order in which they fill a tensor.
inline void Generate(const Philox& philox, uint64_t count, float* numbers) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t low = philox.low + count + lane;
    const uint64_t high = philox.high + (low < philox.low ? 1 : 0);
    c0[lane] = static_cast<uint32_t>(low);
    c1[lane] = static_cast<uint32_t>(low >> 32);
    c2[lane] = static_cast<uint32_t>(high);
    c3[lane] = static_cast<uint32_t>(high >> 32);
  }
  uint32_t key0 = static_cast<uint32_t>(philox.key);
  uint32_t key1 = static_cast<uint32_t>(philox.key >> 32);
  for (int round = 0; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t product0 = static_cast<uint64_t>(kMultiplier0) * c0[lane];
      const uint64_t product1 = static_cast<uint64_t>(kMultiplier1) * c2[lane];
      c0[lane] = static_cast<uint32_t>(product1 >> 32) ^ c1[lane] ^ key0;
      c1[lane] = static_cast<uint32_t>(product1);
      c2[lane] = static_cast<uint32_t>(product0 >> 32) ^ c3[lane] ^ key1;
      c3[lane] = static_cast<uint32_t>(product0);
    }
  }
  uint32_t bits[kLanes * kNumbers];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    bits[kNumbers * lane] = OneToTwo(c0[lane]);
    bits[kNumbers * lane + 1] = OneToTwo(c1[lane]);
    bits[kNumbers * lane + 2] = OneToTwo(c2[lane]);
    bits[kNumbers * lane + 3] = OneToTwo(c3[lane]);
  }
  std::memcpy(numbers, bits, sizeof(bits));
}

FOR_EACH_PROCESSOR
void AddNoise(const Philox& philox, const float* x, int64_t first, int64_t count, float step,
              bool relu, float* y) {
  float numbers[kLanes * kNumbers];
  for (int64_t done = 0; done < count; done += kLanes * kNumbers) {
    Generate(philox, (first + done) / kNumbers, numbers);
    const int64_t here = std::min<int64_t>(kLanes * kNumbers, count - done);
#pragma omp simd
    for (int64_t i = 0; i < here; ++i) {
      const float value = x[first + done + i];
      const float clean = (relu & (value < 0.0f)) ? 0.0f : value;
      y[first + done + i] = clean + ((numbers[i] - 1.0f) - 0.5f) * step;
    }
  }
}

class AddNoiseOp : public OpKernel {
 public:
  explicit AddNoiseOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("relu", &relu_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &input = context->input(0), &step = context->input(1);
    const Tensor &key = context->input(2), &counter = context->input(3);
    OP_REQUIRES(context,
                step.NumElements() == 1 && key.NumElements() == 1 && counter.NumElements() == 2,
                InvalidArgument("step and key must be one number, and counter two. Received: ",
                                step.shape().DebugString(), ", ", key.shape().DebugString(),
                                " and ", counter.shape().DebugString()));
    const auto words = counter.flat<::tensorflow::uint64>();
    const Philox philox = {key.flat<::tensorflow::uint64>()(0), words(0), words(1)};
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, input.shape(), &output));
    const float size = step.flat<float>()(0);
    const float* x = input.flat<float>().data();
    float* y = output->flat<float>().data();
    ForBlocks(context, input.NumElements(), [&](int64_t first, int64_t count, int64_t) {
      AddNoise(philox, x, first, count, size, relu_, y);
    });
  }

 private:
  bool relu_;
};

static_assert(kBlock % (kLanes * kNumbers) == 0, "a block begins with the first number of a count");

REGISTER_OP("TfFpqAddNoise")
    .Input("x: float")
    .Input("step: float")
    .Input("key: uint64")
    .Input("counter: uint64")
    .Attr("relu: bool")
    .Output("y: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->input(0));
      return ::tensorflow::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfFpqAddNoise").Device(::tensorflow::DEVICE_CPU), AddNoiseOp);

}  // namespace
}  // namespace tf_fpq
