// exp, log, sin and cos from IEEE add, multiply and divide alone, so that every PC of a cluster
// computes the same bits (libm's results differ between glibc versions and processors). Built
// without contraction (-ffp-contract=off), these are identical on every instruction set.
#pragma once

namespace stagecoach {

// Double precision, error below 2 ulp over the whole range; inf and NaN as IEEE expects.
double portable_exp(double x);
double portable_log(double x);                                 // x ≤ 0: -inf at 0, NaN below
void portable_sincos(double x, double* sin_x, double* cos_x);  // |x| ≤ 2³⁰; beyond: NaN

}  // namespace stagecoach
