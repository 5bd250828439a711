// CUDA's vector types, with its sizes and alignments, and dim3.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// type, element, alignments of the vectors of 2 and 4
#define CUDA_SIM_VECTORS(X)       \
  X(char, signed char, 2, 4)      \
  X(uchar, unsigned char, 2, 4)   \
  X(short, short, 4, 8)           \
  X(ushort, unsigned short, 4, 8) \
  X(int, int, 8, 16)              \
  X(uint, unsigned, 8, 16)        \
  X(float, float, 8, 16)          \
  X(double, double, 16, 16)       \
  X(longlong, long long, 16, 16)  \
  X(ulonglong, unsigned long long, 16, 16)

#define CUDA_SIM_VECTOR(type, element, align2, align4)                        \
  struct alignas(align2) type##2 {                                            \
    element x, y;                                                             \
  };                                                                          \
  struct alignas(align4) type##4 {                                            \
    element x, y, z, w;                                                       \
  };                                                                          \
  inline type##2 make_##type##2(element x, element y) {                       \
    return {x, y};                                                            \
  }                                                                           \
  inline type##4 make_##type##4(element x, element y, element z, element w) { \
    return {x, y, z, w};                                                      \
  }
CUDA_SIM_VECTORS(CUDA_SIM_VECTOR)
#undef CUDA_SIM_VECTOR
#undef CUDA_SIM_VECTORS

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};
inline float3 make_float3(float x, float y, float z) {
  return {x, y, z};
}
inline int3 make_int3(int x, int y, int z) {
  return {x, y, z};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}
