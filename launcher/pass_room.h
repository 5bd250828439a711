// Whether hosts have room for what they keep of a score.
#pragma once

#include <cstdint>
#include <optional>
#include <set>

namespace stagecoach {

// Each host is looked at once, before its first run: later, what it has kept takes of its room and
// is no reason to keep no more.
class PassRoom {
 public:
  // False: this host is found to lack it, now. Unknown room (nullopt) is enough.
  bool look(std::size_t host, std::optional<std::int64_t> free_bytes, std::int64_t most) {
    if (!looked_at_.insert(host).second) return true;
    const bool enough = !free_bytes || *free_bytes >= most;
    everywhere_ = everywhere_ && enough;
    return enough;
  }
  // Of those that were looked at.
  bool everywhere() const { return everywhere_; }

 private:
  std::set<std::size_t> looked_at_;
  bool everywhere_ = true;
};

}  // namespace stagecoach
