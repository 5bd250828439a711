#include "plan/cost_model.h"

namespace stagecoach {
namespace {

// Shares of the measured limits that kernels reach (docs/performance.md).
constexpr double kMemoryShare = 0.9;
constexpr double kFewRowsShare = 0.6;  // of the arithmetic, up to kFewRows rows
constexpr std::int64_t kFewRows = 48;
constexpr double kManyRowsShare[] = {0.85, 0.8, 0.65};  // by Arithmetic
// Some fifteen operations, each handed to threads.
constexpr double kLayerOverhead = 60e-6;

double rate_of(const HostRates& rates, Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kF32    ? rates.f32
         : arithmetic == Arithmetic::kBF16 ? rates.bf16
                                           : rates.int8;
}

}  // namespace

std::string_view bound_name(Bound bound) {
  switch (bound) {
    case Bound::kDisk:
      return "disk";
    case Bound::kMemoryRate:
      return "memory bandwidth";
    case Bound::kArithmetic:
      return "arithmetic";
    case Bound::kNetwork:
      return "network";
  }
  return "";
}

Work CostModel::work(std::size_t host, std::int64_t bytes, std::int64_t flops,
                     std::int64_t rows) const {
  const HostRates& rates = question_.cluster.hosts[host].rates;
  const double share =
      rows <= kFewRows ? kFewRowsShare : kManyRowsShare[static_cast<int>(question_.arithmetic)];
  const double reading = static_cast<double>(bytes) / (kMemoryShare * rates.memory);
  const double computing =
      static_cast<double>(flops) / (share * rate_of(rates, question_.arithmetic));
  return computing > reading ? Work{computing, Bound::kArithmetic}
                             : Work{reading, Bound::kMemoryRate};
}

Work CostModel::layer(std::size_t host, std::int64_t rows, std::int64_t context) const {
  Work work = this->work(host, question_.layer_bytes,
                         layer_flops(question_.spec, rows, rows * context), rows);
  work.seconds += kLayerOverhead;
  return work;
}

Work CostModel::head(std::size_t host, std::int64_t rows) const {
  return work(host, question_.head_bytes, head_flops(question_.spec, rows), rows);
}

double CostModel::layer_read_seconds(std::size_t host) const {
  return static_cast<double>(question_.layer_bytes) / question_.cluster.hosts[host].rates.disk;
}

double CostModel::head_read_seconds(std::size_t host) const {
  return static_cast<double>(question_.head_bytes) / question_.cluster.hosts[host].rates.disk;
}

double CostModel::transfer(std::int64_t rows) const {
  const double bytes = static_cast<double>(rows * question_.spec.hidden_size) * sizeof(float);
  return bytes / question_.cluster.network.bytes_per_second;
}

}  // namespace stagecoach
