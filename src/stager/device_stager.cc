#include "stager/device_stager.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"

namespace stagecoach {
namespace {

constexpr std::chrono::milliseconds kPoll{100};  // how often a waiting rank looks at `interrupted`
constexpr PartKind kLayerParts[] = {PartKind::kAttention, PartKind::kMlp};

std::size_t kind_index(PartKind kind) {
  return kind == PartKind::kMlp ? 1 : 0;
}

// Where nobody can be told that the device is lost: the next op says so.
void wait_quietly(const EventPtr& event) noexcept {
  try {
    if (event != nullptr) event->synchronize();
  } catch (const std::exception&) {
  }
}

// The host's memory of a copy under way. It goes back once the copy is done, in the order of the
// parts, also when an error ends the thread.
struct UnderWay {
  std::optional<LayerLease> lease;
  EventPtr copied;

  UnderWay() = default;
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;
  ~UnderWay() { end(); }
  void end() {
    wait_quietly(std::exchange(copied, nullptr));
    lease.reset();
  }
};

}  // namespace

// Page-locked memory between disk and device while layers are loaded: one half is read into while
// the other is on its way.
class DeviceStager::LoadTiles {
 public:
  LoadTiles(Backend& device, const PinMemory& pin, std::int64_t bytes)
      : device_(device), block_(std::max<std::int64_t>(1, bytes / 2)) {
    for (Tile& tile : tiles_) {
      tile.memory = AlignedBuffer(StoreReader::scan_memory(block_));
      if (pin) tile.lock = pin(tile.memory.span());
    }
  }
  std::int64_t block() const { return block_; }
  // The half that is free first.
  std::byte* next() {
    Tile& tile = tiles_[++turn_ % std::size(tiles_)];
    if (tile.sent != nullptr) tile.sent->synchronize();
    return tile.memory.data();
  }
  // Of what next() gave last.
  void send(std::byte* to, std::span<const std::byte> bytes) {
    device_.upload(to, bytes);
    tiles_[turn_ % std::size(tiles_)].sent = device_.mark();
  }

 private:
  struct Tile {
    AlignedBuffer memory;
    std::shared_ptr<void> lock;
    EventPtr sent;

    Tile() = default;
    Tile(const Tile&) = delete;
    Tile& operator=(const Tile&) = delete;
    ~Tile() { wait_quietly(sent); }
  };
  Backend& device_;
  const std::int64_t block_;
  Tile tiles_[2];
  std::size_t turn_ = 0;
};

DeviceStager::DeviceStager(LayerStager& host, const LayerStore& store, const StagingPlan& plan,
                           const StagerOptions& options, Backend& device, Timeline& timeline)
    : host_(host),
      store_(store),
      plan_(plan),
      options_(options),
      device_(device),
      timeline_(timeline) {
  load_resident();
  if (plan_.embedding != Residence::kAbsent) {
    load_end(PartKind::kEmbedding, embedding_);
    rows_ = device_.allocate(options_.gather_bytes);
  }
  if (plan_.head != Residence::kAbsent) {
    load_end(PartKind::kHead, head_);
    load_head_matrix();
  }
  if (plan_.device.streams()) begin_stream();
}

DeviceStager::~DeviceStager() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  released_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  // Before the slots: copies may still be under way into them.
  for (const auto& [number, event] : copied_) wait_quietly(event);
}

DeviceStager::Key DeviceStager::key_of(std::int64_t layer, PartKind part) const {
  return {plan_.share_slabs ? store_.manifest().layer_slab[static_cast<std::size_t>(layer)] : layer,
          part};
}

// Straight from disk, in pieces: these parts never are in the host's memory as a whole.
void DeviceStager::load_resident() {
  std::int64_t total = 0, done = 0;
  for (const StagedLayer& layer : plan_.layers)
    if (layer.on_device)
      for (const PartEntry& part : store_.layer_slab(layer.layer).parts) total += part.bytes;
  if (total == 0) return;
  LoadTiles tiles(device_, options_.pin, options_.tile_bytes);
  for (const StagedLayer& layer : plan_.layers) {
    if (!layer.on_device) continue;
    const SlabEntry& slab = store_.layer_slab(layer.layer);
    for (const PartEntry& part : slab.parts) {
      const Key key = key_of(layer.layer, part.kind);
      done += part.bytes;
      if (resident_.contains(key)) continue;
      const ScopedSpan timed(timeline_, {.kind = SpanKind::kRead,
                                         .layer = static_cast<std::int32_t>(layer.layer),
                                         .bytes = part.bytes});
      ResidentPart loaded{.memory = device_.allocate(part.bytes)};
      upload_part(slab, part, tiles, loaded.memory.data());
      loaded.tensors = part_tensors(part, loaded.memory.data());
      resident_.emplace(key, std::move(loaded));
      if (options_.progress) options_.progress(done, total);
    }
  }
}

void DeviceStager::upload_part(const SlabEntry& slab, const PartEntry& part, LoadTiles& tiles,
                               std::byte* to) {
  std::optional<StreamingHash> hash;
  if (options_.verify != VerifyMode::kOff) hash.emplace();
  host_.reader().scan(
      slab, part, part.offset, part.bytes, tiles.block(), [&] { return tiles.next(); },
      [&](std::span<const std::byte> bytes) {
        tiles.send(to, bytes);
        if (hash) hash->update(bytes);
        to += bytes.size();
      });
  if (!hash || hash->digest() == part.checksum) return;
  throw data_error(fmt::format("{} is damaged: its checksum differs from the manifest's",
                               part_label(store_, slab, part)),
                   store_.repair_hint(slab));
}

// Norms, projections and biases; large tables have views of their own.
void DeviceStager::load_end(PartKind kind, std::optional<End>& end) {
  const LayerLease host = host_.lease_ends(kind);
  end.emplace();
  for (int role = 0; role < kTensorRoles; ++role) {
    const TensorView& tensor = host[static_cast<TensorRole>(role)];
    if (!tensor || is_large_table(static_cast<TensorRole>(role))) continue;
    Buffer& memory = end->memory.emplace_back(device_.allocate(tensor.bytes()));
    device_.upload(memory.data(), {tensor.data, static_cast<std::size_t>(tensor.bytes())});
    TensorView& view = end->tensors.views[role];
    view = tensor;
    view.data = memory.data();
  }
}

void DeviceStager::load_head_matrix() {
  if (!plan_.device.head) return;
  std::int64_t at = 0;
  host_.head_matrix([&](std::int64_t first, const TensorView& tile) {
    if (first == 0) {
      // The whole matrix, of which this is the first tile.
      head_matrix_ = tile;
      head_matrix_.rows = store_.manifest().spec.vocab_size;
      head_memory_ = device_.allocate(head_matrix_.bytes());
    }
    device_.upload(head_memory_.data() + at, {tile.data, static_cast<std::size_t>(tile.bytes())});
    device_.synchronize();
    at += tile.bytes();
  });
  STAGECOACH_CHECK(at == head_memory_.bytes());
  head_matrix_.data = head_memory_.data();
}

std::int64_t DeviceStager::bytes() const {
  std::int64_t bytes = head_memory_.bytes() + rows_.bytes();
  for (const auto& [key, part] : resident_) bytes += part.memory.bytes();
  for (const std::optional<End>* end : {&embedding_, &head_})
    if (*end)
      for (const Buffer& memory : (*end)->memory) bytes += memory.bytes();
  for (const std::vector<Slot>& ring : slots_)
    for (const Slot& slot : ring) bytes += slot.memory.bytes();
  for (const Slot& tile : head_tiles_) bytes += tile.memory.bytes();
  return bytes;
}

void DeviceStager::begin_stream() {
  std::int64_t largest[2] = {};
  bool reached = options_.first_layer < 0;
  for (const StagedLayer& layer : plan_.layers) {
    reached = reached || layer.layer >= options_.first_layer;
    if (layer.on_device || layer.on_cpu) continue;
    for (const PartKind kind : kLayerParts) {
      const PartEntry* const entry = store_.layer_slab(layer.layer).part(kind);
      STAGECOACH_CHECK(entry != nullptr);
      const std::size_t k = kind_index(kind);
      largest[k] = std::max(largest[k], entry->bytes);
      if (!reached) ++first_;
      const std::uint64_t index = parts_.size();
      parts_.push_back({layer.layer, kind, entry, of_kind_[k].size()});
      of_kind_[k].push_back(index);
    }
  }
  if (parts_.empty()) return;
  const int counts[] = {plan_.device.attention_slots, plan_.device.mlp_slots};
  for (std::size_t k = 0; k < 2; ++k)
    for (int i = 0; i < counts[k]; ++i)
      slots_[k].push_back({device_.allocate(largest[k]), nullptr});
  // Memory is zeroed in the order of ops, which a copy beside them must not overtake.
  const EventPtr zeroed = device_.mark();
  for (std::vector<Slot>& ring : slots_)
    for (Slot& slot : ring) slot.used = zeroed;
  next_ = released_ = first_;
  end_ = options_.passes > 0 ? static_cast<std::uint64_t>(options_.passes) * parts_.size()
                             : ~std::uint64_t{0};
  spdlog::debug("{} of {} layers pass through {} + {} slots of the device", parts_.size() / 2,
                plan_.layers.size(), counts[0], counts[1]);
  thread_ = std::thread([this] {
    try {
      copy_all();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
      copied_changed_.notify_all();
    }
  });
}

std::uint64_t DeviceStager::ordinal(std::uint64_t number) const {
  const std::size_t k = kind_index(part(number).kind);
  return number / parts_.size() * of_kind_[k].size() + part(number).index_in_kind;
}

DeviceStager::Slot& DeviceStager::slot_of(std::uint64_t number) {
  std::vector<Slot>& ring = slots_[kind_index(part(number).kind)];
  return ring[ordinal(number) % ring.size()];
}

std::optional<std::uint64_t> DeviceStager::previous_in_slot(std::uint64_t number) const {
  const std::size_t k = kind_index(part(number).kind);
  const std::uint64_t place = ordinal(number), slots = slots_[k].size();
  if (place < slots) return std::nullopt;
  const std::uint64_t before = place - slots, per_pass = of_kind_[k].size();
  return before / per_pass * parts_.size() + of_kind_[k][before % per_pass];
}

// The copying thread. Of two copies under way the first one's memory is given back when the second
// has been queued: the bus has no gap between them.
void DeviceStager::copy_all() {
  UnderWay newer, older;  // destroyed in the order of the parts
  std::int64_t last_end_ns = 0, queued_ns = 0;
  Span span{.kind = SpanKind::kCopy};
  const auto finish_older = [&] {
    if (older.copied == nullptr) return;
    span.end_ns = older.copied->passed_ns();
    span.begin_ns = std::min(span.end_ns, std::max(queued_ns, last_end_ns));
    last_end_ns = span.end_ns;
    timeline_.record(span);
    older.end();
  };
  for (std::uint64_t number = first_; number < end_; ++number) {
    const StreamedPart& wanted = part(number);
    if (!wait_for_slot(number, finish_older)) break;
    newer.lease.emplace(host_.lease(wanted.layer, wanted.kind, NextUse::kNextPass));
    const TensorEntry& first_tensor = wanted.entry->tensors.front();
    const std::byte* const data = (*newer.lease)[first_tensor.spec.role].data - first_tensor.offset;
    Slot& slot = slot_of(number);
    const std::int64_t now = now_ns();
    newer.copied = device_.copy_ahead(
        slot.memory.data(), {data, static_cast<std::size_t>(wanted.entry->bytes)}, slot.used);
    {
      const std::lock_guard lock(mutex_);
      copied_.emplace(number, newer.copied);
    }
    copied_changed_.notify_all();
    finish_older();
    older.lease.emplace(*std::move(newer.lease));
    older.copied = std::move(newer.copied);
    newer.lease.reset();
    queued_ns = now;
    span.layer = static_cast<std::int32_t>(wanted.layer);
    span.bytes = wanted.entry->bytes;
  }
  finish_older();
}

// Until the ops that last used the slot of `number` have been queued; false: the job ends.
// `meanwhile`: what there is time for.
bool DeviceStager::wait_for_slot(std::uint64_t number, const std::function<void()>& meanwhile) {
  const std::optional<std::uint64_t> before = previous_in_slot(number);
  std::unique_lock lock(mutex_);
  const auto free = [&] { return stop_ || !before || *before < released_; };
  if (!free()) {
    lock.unlock();
    meanwhile();
    lock.lock();
  }
  released_changed_.wait(lock, free);
  return !stop_;
}

EventPtr DeviceStager::wait_copied(std::uint64_t number) {
  std::unique_lock lock(mutex_);
  while (error_ || !copied_.contains(number)) {
    if (error_) std::rethrow_exception(error_);
    if (options_.interrupted && options_.interrupted())
      throw Error(ErrorKind::kInterrupted, "interrupted");
    copied_changed_.wait_for(lock, kPoll);
  }
  return copied_.extract(number).mapped();
}

// Called as a lease ends, where nothing may be thrown: an error is the next lease's.
void DeviceStager::release(std::uint64_t number) noexcept {
  EventPtr used;
  std::exception_ptr failed;
  try {
    used = device_.mark();
  } catch (...) {
    failed = std::current_exception();
  }
  {
    const std::lock_guard lock(mutex_);
    slot_of(number).used = std::move(used);
    if (failed) {
      error_ = failed;
      stop_ = true;
    } else {
      ++released_;
    }
  }
  released_changed_.notify_one();
}

LayerLease DeviceStager::lease(std::int64_t layer, PartKind part_kind, NextUse next) {
  if (const auto found = resident_.find(key_of(layer, part_kind)); found != resident_.end())
    return {found->second.tensors, nullptr};
  const Key key{layer, part_kind};
  auto held = held_.find(key);
  if (held == held_.end()) {
    // Whoever leases in another order would get another layer's weights.
    STAGECOACH_CHECK(!parts_.empty() && next_ < end_ && part(next_).layer == layer &&
                     part(next_).kind == part_kind);
    device_.wait_for(wait_copied(next_));
    held = held_
               .emplace(key, HeldPart{next_, part_tensors(*part(next_).entry,
                                                          slot_of(next_).memory.data())})
               .first;
    ++next_;
  }
  if (next == NextUse::kThisPass) return {held->second.tensors, nullptr};
  return {held->second.tensors, [this, key] {
            const auto ended = held_.find(key);
            release(ended->second.number);
            held_.erase(ended);
          }};
}

LayerLease DeviceStager::lease_ends(PartKind part_kind) {
  const std::optional<End>& end = part_kind == PartKind::kEmbedding ? embedding_ : head_;
  STAGECOACH_CHECK(end.has_value());
  return {end->tensors, nullptr};
}

// Only the rows that are wanted go to the device, as float32.
void DeviceStager::gather(TensorRole table, std::span<const std::int32_t> ids, const UseRows& use) {
  host_.gather(
      table, ids,
      [&](std::size_t first, const TensorView& rows, std::span<const std::int32_t> local) {
        const auto most = static_cast<std::size_t>(std::max<std::int64_t>(
            1, options_.gather_bytes / (rows.cols * static_cast<std::int64_t>(sizeof(float)))));
        std::vector<float> values;
        std::vector<std::int32_t> places;
        for (std::size_t begin = 0; begin < local.size(); begin += most) {
          const std::span<const std::int32_t> some =
              local.subspan(begin, std::min(most, local.size() - begin));
          values.resize(some.size() * static_cast<std::size_t>(rows.cols));
          for (std::size_t i = 0; i < some.size(); ++i)
            unpack_rows(rows.layout, rows.type, rows.data, rows.cols, some[i], 1,
                        values.data() + i * static_cast<std::size_t>(rows.cols));
          const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
          if (static_cast<std::int64_t>(bytes.size()) > rows_.bytes())
            rows_ = device_.allocate(static_cast<std::int64_t>(bytes.size()));
          device_.upload(rows_.data(), bytes);
          places.resize(some.size());
          std::iota(places.begin(), places.end(), 0);
          use(first + begin,
              {.data = rows_.data(),
               .type = DType::kF32,
               .layout = Layout::kRows,
               .rows = static_cast<std::int64_t>(some.size()),
               .cols = rows.cols},
              places);
        }
      });
}

// Copies of tiles go on beside the ops, which wait for theirs; a copy waits for the ops that last
// read its half of the memory.
void DeviceStager::head_matrix(const UseTile& use) {
  if (head_matrix_) return use(0, head_matrix_);
  std::size_t turn = 0;
  host_.head_matrix([&](std::int64_t first, const TensorView& host_tile) {
    // In memory the matrix is one tile: it passes in pieces of whole panels.
    const std::int64_t panel =
        layout_bytes(host_tile.layout, host_tile.type, kPanelRows, host_tile.cols);
    const std::int64_t rows = std::max<std::int64_t>(1, options_.tile_bytes / panel) * kPanelRows;
    EventPtr copied;
    for (std::int64_t row = 0; row < host_tile.rows; row += rows) {
      TensorView tile = host_tile;
      tile.data = host_tile.data + row / kPanelRows * panel;
      tile.rows = std::min(rows, host_tile.rows - row);
      Slot& slot = head_tiles_[turn++ % std::size(head_tiles_)];
      if (tile.bytes() > slot.memory.bytes()) {
        slot.memory = device_.allocate(tile.bytes());
        slot.used = device_.mark();  // zeroed in the order of ops
      }
      copied = device_.copy_ahead(slot.memory.data(),
                                  {tile.data, static_cast<std::size_t>(tile.bytes())}, slot.used);
      device_.wait_for(copied);
      tile.data = slot.memory.data();
      use(first + row, tile);
      slot.used = device_.mark();
    }
    // The host's memory is another tile's as soon as this returns.
    if (copied != nullptr) copied->synchronize();
  });
}

}  // namespace stagecoach
