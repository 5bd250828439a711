// A .cu file, compiled as the project's kernels are: what a GPU cannot read unaligned traps.
#include <gtest/gtest.h>

#include "sim_test.h"

namespace {

__global__ void load4(const float* x, float* out, int offset) {
  const float4 four = *reinterpret_cast<const float4*>(x + offset);
  out[threadIdx.x] = four.x + four.y + four.z + four.w;
}

class Alignment : public SimTest {};

TEST_F(Alignment, MisalignedVectorsFailTheDevice) {
  Stream stream;
  DeviceArray<float> x(std::vector<float>(64, 1.0f)), out(32);
  cuda_sim::launch_kernel("load4", load4, 1, 32, 0, stream, x.get(), out.get(), 4);
  EXPECT_EQ(out.read(stream), std::vector<float>(32, 4.0f));
  cuda_sim::launch_kernel("load4", load4, 1, 32, 0, stream, x.get(), out.get(), 1);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorMisalignedAddress);
  EXPECT_TRUE(message_has("kernel load4"));
  cuda_sim::reset({});
}

}  // namespace
