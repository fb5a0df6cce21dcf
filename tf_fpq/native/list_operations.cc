// What a step does with each of many small tensors, in one operation for all.
//
//     sums   = half the sum of squares of each, as tf.nn.l2_loss has it
//     between = before + factor * (after - before), elementwise

#include <cstdint>
#include <vector>

#include "tf_fpq/native/operation.h"

namespace tf_fpq {
namespace {

FOR_EACH_PROCESSOR
float SumOfSquares(const float* x, int64_t count) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

class HalfSquaresOp : public OpKernel {
 public:
  explicit HalfSquaresOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    OpInputList tensors;
    OP_REQUIRES_OK(context, context->input_list("tensors", &tensors));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({tensors.size()}), &output));
    for (int i = 0; i < tensors.size(); ++i) {
      output->flat<float>()(i) = HalfSquares(context, tensors[i]);
    }
  }

 private:
  static float HalfSquares(OpKernelContext* context, const Tensor& tensor) {
    const float* x = tensor.flat<float>().data();
    std::vector<float> sums(NumBlocks(tensor.NumElements()));
    ForBlocks(context, tensor.NumElements(), [&](int64_t first, int64_t count, int64_t block) {
      sums[block] = SumOfSquares(x + first, count);
    });
    double sum = 0.0;
    for (const float of_block : sums) sum += of_block;
    return static_cast<float>(0.5 * sum);
  }
};

class InterpolateOp : public OpKernel {
 public:
  explicit InterpolateOp(OpKernelConstruction* context) : OpKernel(context) {}

  void Compute(OpKernelContext* context) override {
    OpInputList before, after;
    OP_REQUIRES_OK(context, context->input_list("before", &before));
    OP_REQUIRES_OK(context, context->input_list("after", &after));
    const float factor = context->input(before.size() + after.size()).scalar<float>()();
    for (int i = 0; i < before.size(); ++i) {
      OP_REQUIRES(context, before[i].shape() == after[i].shape(),
                  InvalidArgument("before and after must have the same shapes. Received: ",
                                  before[i].shape().DebugString(), " and ",
                                  after[i].shape().DebugString()));
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, before[i].shape(), &output));
      const auto from = before[i].flat<float>(), to = after[i].flat<float>();
      auto between = output->flat<float>();
      for (int64_t j = 0; j < from.size(); ++j) between(j) = from(j) + factor * (to(j) - from(j));
    }
  }
};

REGISTER_OP("TfFpqInterpolate")
    .Input("before: number * float")
    .Input("after: number * float")
    .Input("factor: float")
    .Attr("number: int >= 1")
    .Output("between: number * float")
    .SetShapeFn([](InferenceContext* context) {
      for (int i = 0; i < context->num_outputs(); ++i) context->set_output(i, context->input(i));
      return ::tensorflow::OkStatus();
    });

REGISTER_OP("TfFpqHalfSquares")
    .Input("tensors: number * float")
    .Attr("number: int >= 1")
    .Output("sums: float")
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Vector(context->num_inputs()));
      return ::tensorflow::OkStatus();
    });

REGISTER_KERNEL_BUILDER(Name("TfFpqInterpolate").Device(::tensorflow::DEVICE_CPU), InterpolateOp);
REGISTER_KERNEL_BUILDER(Name("TfFpqHalfSquares").Device(::tensorflow::DEVICE_CPU), HalfSquaresOp);

}  // namespace
}  // namespace tf_fpq
