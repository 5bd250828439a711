// What every kernel test needs: the tables under test, fresh random data, bit comparison.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "conformance/random_data.h"
#include "kernels/cpu/isa_tables.h"
#include "kernels/include/ops.h"

namespace stagecoach {

inline constexpr double kRoundoff = 0x1p-24;  // of float32

// Everything this processor runs, and the wide tilings emulated.
inline std::vector<const KernelTable*> tables_under_test() {
  std::vector<const KernelTable*> tables;
  const IsaList isas = supported_isas();
  for (int i = 0; i < isas.count; ++i) tables.push_back(kernel_table(isas.names[i]));
  tables.push_back(&kEmulated8Kernels);
  tables.push_back(&kEmulated16Kernels);
  return tables;
}

class KernelTest : public ::testing::TestWithParam<const KernelTable*>, protected RandomData {
 protected:
  KernelTest() : RandomData(20240607) {}

  const KernelTable& kernels() const { return *GetParam(); }
};

inline std::string table_name(const ::testing::TestParamInfo<const KernelTable*>& info) {
  std::string name = info.param->isa;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

#define STAGECOACH_EVERY_ISA(Fixture)                                                            \
  INSTANTIATE_TEST_SUITE_P(Isa, Fixture, ::testing::ValuesIn(::stagecoach::tables_under_test()), \
                           ::stagecoach::table_name)

inline ::testing::AssertionResult same_bits(const Floats& a, const Floats& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0)
      return ::testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
  return ::testing::AssertionSuccess();
}

}  // namespace stagecoach
