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
// The same of a device (docs/cuda.md), whose operations are launched one after the other.
constexpr double kDeviceMemoryShare = 0.85;
constexpr double kDeviceManyRowsShare = 0.6;
constexpr std::int64_t kDeviceFewRows = 32;  // that read weights as they are, bound by memory
constexpr double kDeviceLayerOverhead = 80e-6;
constexpr double kLeastOfMemory = 0.25;  // for a processor beside copies to the device
constexpr double kCrossing = 30e-6;      // until one side knows that the other is done

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
    case Bound::kBus:
      return "bus to the device";
  }
  return "";
}

Work CostModel::device_work(const DeviceRates& rates, std::int64_t bytes, std::int64_t flops,
                            std::int64_t rows) const {
  const double reading = static_cast<double>(bytes) / (kDeviceMemoryShare * rates.memory);
  const double computing = rows <= kDeviceFewRows
                               ? 0
                               : static_cast<double>(flops) / (kDeviceManyRowsShare * rates.halves);
  return computing > reading ? Work{computing, Bound::kArithmetic}
                             : Work{reading, Bound::kMemoryRate};
}

Work CostModel::cpu_work(const HostRates& rates, std::int64_t bytes, std::int64_t flops,
                         std::int64_t rows) const {
  const double share =
      rows <= kFewRows ? kFewRowsShare : kManyRowsShare[static_cast<int>(question_.arithmetic)];
  const double reading = static_cast<double>(bytes) / (kMemoryShare * rates.memory);
  const double computing =
      static_cast<double>(flops) / (share * rate_of(rates, question_.arithmetic));
  return computing > reading ? Work{computing, Bound::kArithmetic}
                             : Work{reading, Bound::kMemoryRate};
}

Work CostModel::work(std::size_t host, std::int64_t bytes, std::int64_t flops,
                     std::int64_t rows) const {
  const HostSpec& spec = question_.cluster.hosts[host];
  return spec.on_device() ? device_work(spec.device, bytes, flops, rows)
                          : cpu_work(spec.rates, bytes, flops, rows);
}

// With its keys and values.
std::int64_t CostModel::layer_bytes(const LayerRows& batch) const {
  return question_.layer_bytes + batch.sequences * batch.context * question_.kv_bytes;
}

std::int64_t CostModel::flops(const LayerRows& batch) const {
  return layer_flops(question_.spec, batch.rows, batch.rows * batch.context);
}

Work CostModel::layer(std::size_t host, const LayerRows& batch) const {
  Work work = this->work(host, layer_bytes(batch), flops(batch), batch.rows);
  work.seconds += question_.cluster.hosts[host].on_device() ? kDeviceLayerOverhead : kLayerOverhead;
  return work;
}

Work CostModel::cpu_layer(std::size_t host, const LayerRows& batch, bool beside_copies) const {
  const HostSpec& spec = question_.cluster.hosts[host];
  HostRates rates = spec.rates;
  if (beside_copies)
    rates.memory = std::max(rates.memory - spec.device.bus, kLeastOfMemory * rates.memory);
  Work work = cpu_work(rates, layer_bytes(batch), flops(batch), batch.rows);
  work.seconds += kLayerOverhead;
  return work;
}

double CostModel::crossing(std::size_t host, std::int64_t rows) const {
  const double bytes = static_cast<double>(rows * question_.spec.hidden_size) * sizeof(float);
  return kCrossing + bytes / question_.cluster.hosts[host].device.bus;
}

Work CostModel::head(std::size_t host, std::int64_t rows, bool in_passes) const {
  return work(host, question_.head_sweeps(rows, in_passes) * question_.head_bytes,
              head_flops(question_.spec, rows), rows);
}

double CostModel::layer_read_seconds(std::size_t host) const {
  return static_cast<double>(question_.layer_bytes) / question_.cluster.hosts[host].rates.disk;
}

double CostModel::layer_copy_seconds(std::size_t host) const {
  return static_cast<double>(question_.layer_bytes) / question_.cluster.hosts[host].device.bus;
}

double CostModel::head_read_seconds(std::size_t host, std::int64_t rows) const {
  return static_cast<double>(question_.head_sweeps(rows, true) * question_.head_bytes) /
         question_.cluster.hosts[host].rates.disk;
}

double CostModel::transfer(std::int64_t rows) const {
  const double bytes = static_cast<double>(rows * question_.spec.hidden_size) * sizeof(float);
  return bytes / question_.cluster.network.bytes_per_second;
}

}  // namespace stagecoach
