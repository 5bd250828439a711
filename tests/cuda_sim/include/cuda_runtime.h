// Stand-in for CUDA's header of this name: a simulated runtime for tests on machines without a GPU.
// Kernels are C++ functions here, compiled by the host compiler; cuda_sim_launch.h starts them.
#pragma once

#ifndef STAGECOACH_CUDA_SIM
#error "simulated CUDA headers are in the include path, but STAGECOACH_CUDA_SIM is not defined"
#endif

// Kernels are compiled for one architecture, as by nvcc: 750 selects what they do before compute
// capability 8.0.
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 860
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#include "cuda_runtime_api.h"
#include "cuda_sim_device.h"
#include "cuda_sim_launch.h"
#include "cuda_sim_math.h"
#include "driver_types.h"
#include "vector_types.h"
