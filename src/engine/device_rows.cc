#include "engine/device_rows.h"

#include <mutex>
#include <vector>

namespace stagecoach {

struct DeviceRows::Free {
  std::mutex mutex;
  std::vector<std::byte*> pieces;
};

DeviceRows::DeviceRows(Backend& backend, int pieces, std::int64_t piece_bytes)
    : backend_(backend),
      pieces_(pieces),
      piece_bytes_(piece_bytes),
      memory_(backend.allocate(pieces * piece_bytes)),
      free_(std::make_shared<Free>()) {
  for (int i = 0; i < pieces; ++i) free_->pieces.push_back(memory_.data() + i * piece_bytes);
  backend.synchronize();  // others write there in no order with the ops that clear it
}

DeviceRows::~DeviceRows() {
  const std::lock_guard lock(free_->mutex);
  if (static_cast<int>(free_->pieces.size()) < pieces_) memory_.release();
}

std::shared_ptr<std::byte> DeviceRows::take(std::size_t bytes) {
  if (static_cast<std::int64_t>(bytes) > piece_bytes_) return nullptr;
  const std::lock_guard lock(free_->mutex);
  if (free_->pieces.empty()) return nullptr;
  std::byte* const piece = free_->pieces.back();
  free_->pieces.pop_back();
  return {piece, [free = free_](std::byte* data) {
            const std::lock_guard returning(free->mutex);
            free->pieces.push_back(data);
          }};
}

}  // namespace stagecoach
