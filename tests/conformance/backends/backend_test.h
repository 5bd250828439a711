// One suite for every backend, against the oracle (kernels/ref): the CPU, and whatever module of
// CUDA STAGECOACH_MODULES leads to: the simulation of tests/cuda_sim, or a real card's.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "base/error.h"
#include "conformance/random_data.h"
#include "kernels/include/ops.h"
#include "support_gpu.h"

namespace stagecoach {

using Bytes = std::vector<std::byte>;

inline constexpr double kRoundoff = 0x1p-24;  // of float32

class BackendTest : public ::testing::TestWithParam<std::string>, protected RandomData {
 protected:
  BackendTest() : RandomData(20261126) {}

  void SetUp() override {
    if (GetParam() == "cpu") {
      backend_ = make_cpu_backend({.threads = 2, .isa = {}});
      return;
    }
    try {
      backend_ = make_cuda_backend({});
    } catch (const Error& error) {
      if (!skips_gpu(error)) throw;
      GTEST_SKIP() << error.what();
    }
  }

  Backend& backend() { return *backend_; }
  bool is_gpu() const { return GetParam() != "cpu"; }

  Buffer on_device(std::span<const std::byte> host) {
    Buffer buffer = backend_->allocate(static_cast<std::int64_t>(host.size()));
    backend_->upload(buffer.data(), host);
    return buffer;
  }
  Buffer on_device(const Floats& host) { return on_device(std::as_bytes(std::span(host))); }
  Floats floats_of(const Buffer& buffer) {
    Floats values(static_cast<std::size_t>(buffer.bytes()) / sizeof(float));
    backend_->download(std::as_writable_bytes(std::span(values)), buffer.data());
    return values;
  }
  Bytes bytes_of(const Buffer& buffer) {
    Bytes values(static_cast<std::size_t>(buffer.bytes()));
    backend_->download(values, buffer.data());
    return values;
  }

  std::unique_ptr<Backend> backend_;
};

#define STAGECOACH_EVERY_BACKEND(Fixture)                                       \
  INSTANTIATE_TEST_SUITE_P(Backends, Fixture, ::testing::Values("cpu", "cuda"), \
                           [](const auto& backend) { return backend.param; })

}  // namespace stagecoach
