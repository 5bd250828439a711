// The largest single request to operator new since the last reset: hostile files must not make us
// ask for what they merely claim.
#pragma once

#include <cstddef>

namespace stagecoach::test {

void reset_largest_allocation();
std::size_t largest_allocation();

}  // namespace stagecoach::test
