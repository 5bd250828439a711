#include "launcher/distribution.h"

#include <algorithm>
#include <mutex>

#include "base/byte_size.h"
#include "base/error.h"
#include "plan/replicas.h"

namespace stagecoach {
namespace {

constexpr std::size_t kMostSources = 8;  // of a slab: more of them make no link faster

const std::string& slab_name(const Manifest& manifest, int slab, const std::string& what) {
  if (slab < 0)
    throw data_error(
        fmt::format("no host has {} of {}", what, manifest.name),
        "stagecoach import CHECKPOINT STORE on one of them; --layers A:B imports a part");
  return manifest.slabs[static_cast<std::size_t>(slab)].file;
}

const std::string& layer_name(const Manifest& manifest, std::int64_t layer) {
  return slab_name(manifest, manifest.layer_slab[static_cast<std::size_t>(layer)],
                   fmt::format("layer {}", layer));
}

void add_head(const Manifest& manifest, SlabNames& slabs) {
  slabs.insert(slab_name(manifest, manifest.head_slab, "the head"));
  // A tied head is the embedding.
  if (manifest.spec.tied_head)
    slabs.insert(slab_name(manifest, manifest.embedding_slab, "the embedding"));
}

}  // namespace

std::vector<SlabNames> own_slabs(const StagePlan& plan, const Manifest& manifest) {
  std::vector<SlabNames> slabs(static_cast<std::size_t>(plan.ranks));
  for (const Window& window : plan.windows)
    for (std::int64_t layer = window.begin; layer < window.end; ++layer)
      slabs[static_cast<std::size_t>(window.rank)].insert(layer_name(manifest, layer));
  slabs[static_cast<std::size_t>(plan.windows.front().rank)].insert(
      slab_name(manifest, manifest.embedding_slab, "the embedding"));
  add_head(manifest, slabs[static_cast<std::size_t>(plan.last_rank())]);
  return slabs;
}

std::vector<SlabNames> replica_slabs(const StagePlan& plan, const Manifest& manifest) {
  std::vector<SlabNames> slabs(static_cast<std::size_t>(plan.ranks));
  const Replicas replicas = replicas_of(plan);
  for (std::size_t i = 0; i < replicas.layers.size(); ++i)
    slabs[static_cast<std::size_t>(replicas.layers[i])].insert(
        layer_name(manifest, plan.layer_begin() + static_cast<std::int64_t>(i)));
  slabs[static_cast<std::size_t>(replicas.embedding)].insert(
      slab_name(manifest, manifest.embedding_slab, "the embedding"));
  add_head(manifest, slabs[static_cast<std::size_t>(replicas.head)]);
  return slabs;
}

Manifest subset(const Manifest& manifest, const SlabNames& slabs) {
  Manifest part = manifest;
  part.slabs.clear();
  std::vector<int> moved(manifest.slabs.size(), -1);
  for (std::size_t i = 0; i < manifest.slabs.size(); ++i) {
    if (!slabs.contains(manifest.slabs[i].file)) continue;
    moved[i] = static_cast<int>(part.slabs.size());
    part.slabs.push_back(manifest.slabs[i]);
  }
  const auto move = [&](int& slab) {
    if (slab >= 0) slab = moved[static_cast<std::size_t>(slab)];
  };
  for (int& slab : part.layer_slab) move(slab);
  move(part.embedding_slab);
  move(part.head_slab);
  return part;
}

Model::Model(Hosts& hosts) {
  // This machine's store first: where copies differ, it is what the user means.
  look_into(hosts.source());
  for (Host& host : hosts.all())
    if (host.reached()) look_into(host);
  if (!manifest_)
    throw data_error(
        fmt::format("no host has the model: neither {} here nor the hosts' stores hold slabs",
                    hosts.source().store),
        fmt::format("stagecoach import CHECKPOINT {}", hosts.source().store));
}

void Model::look_into(Host& host) {
  const StoreContents contents = host.client->store(host.store);
  for (const StoreFile& file : contents.tokenizer) tokenizer_files_[&host][file.name] = file.bytes;
  if (!contents.manifest) return;
  if (manifest_)
    check_same_model(*manifest_, *contents.manifest,
                     fmt::format("{}: {}", host.name(), host.store));
  manifest_ = manifest_ ? merged(*contents.manifest, *manifest_) : *contents.manifest;
  for (const StoreFile& file : contents.slabs) {
    const auto theirs =
        std::find_if(contents.manifest->slabs.begin(), contents.manifest->slabs.end(),
                     [&](const SlabEntry& slab) { return slab.file == file.name; });
    const SlabEntry& ours = entry(file.name);
    const bool same =
        std::equal(ours.parts.begin(), ours.parts.end(), theirs->parts.begin(), theirs->parts.end(),
                   [](const PartEntry& a, const PartEntry& b) { return a.checksum == b.checksum; });
    if (same) holdings_[&host].insert(file.name);
  }
  for (const StoreFile& file : contents.tokenizer)
    if (!tokenizer_.contains(file.name))
      tokenizer_[file.name] = host.client->read_file(host.store, file);
}

const SlabEntry& Model::entry(const std::string& slab) const {
  const auto found =
      std::find_if(manifest_->slabs.begin(), manifest_->slabs.end(),
                   [&](const SlabEntry& candidate) { return candidate.file == slab; });
  STAGECOACH_CHECK(found != manifest_->slabs.end());
  return *found;
}

std::vector<std::string> Model::missing(const Host& host, const SlabNames& wanted) const {
  const auto there = holdings_.find(&host);
  std::vector<std::string> names;
  for (const std::string& slab : wanted)
    if (there == holdings_.end() || !there->second.contains(slab)) names.push_back(slab);
  return names;
}

std::int64_t Model::bytes(const std::vector<std::string>& slabs) const {
  std::int64_t bytes = 0;
  for (const std::string& slab : slabs) bytes += entry(slab).bytes;
  return bytes;
}

std::vector<SlabSource> Model::sources_of(const std::string& slab, const Host& except) const {
  std::vector<SlabSource> sources;
  for (const auto& [host, slabs] : holdings_)
    if (host != &except && host->reached() && slabs.contains(slab) && sources.size() < kMostSources)
      // On one machine it is a copy of a file.
      sources.push_back(
          {host->here && except.here ? Endpoint{.address = {}, .port = 0} : host->agent,
           host->store});
  if (sources.empty())
    throw data_error(
        fmt::format("{}: no other host that can be reached has {}", except.name(), slab),
        "bring a host that has it back, or import those layers on one");
  return sources;
}

void Model::ship_tokenizer(Host& host) {
  std::map<std::string, std::int64_t>& files = tokenizer_files_.at(&host);
  for (const auto& [name, content] : tokenizer_) {
    const auto bytes = static_cast<std::int64_t>(content.size());
    const auto there = files.find(name);
    // Of the same length: a few megabytes, which are read to see.
    if (there != files.end() && there->second == bytes &&
        host.client->read_file(host.store, {name, bytes}) == content)
      continue;
    host.client->put_file(host.store, name, content);
    files[name] = bytes;
  }
}

void Model::ship(Hosts& hosts, const std::vector<SlabNames>& wanted, const Report& report) {
  std::vector<Host>& all = hosts.all();
  STAGECOACH_CHECK(wanted.size() == all.size());
  std::vector<std::vector<std::string>> lacking(all.size());
  std::vector<std::vector<std::vector<SlabSource>>> sources(all.size());
  std::vector<std::int64_t> done(all.size(), 0);
  std::int64_t total = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!all[i].reached()) continue;
    lacking[i] = missing(all[i], wanted[i]);
    for (const std::string& slab : lacking[i]) sources[i].push_back(sources_of(slab, all[i]));
    total += bytes(lacking[i]);
    tokenizer_files_[&all[i]];  // made before threads look for them
    holdings_[&all[i]];
  }
  std::mutex mutex;
  hosts.each([&](Host& host) {
    const auto i = static_cast<std::size_t>(&host - all.data());
    if (!wanted[i].empty() && &host != &hosts.source()) ship_tokenizer(host);
    if (lacking[i].empty()) return;
    host.client->pull(host.store, *manifest_, lacking[i], sources[i],
                      [&](std::int64_t some, std::int64_t) {
                        const std::lock_guard lock(mutex);
                        done[i] = some;
                        std::int64_t sum = 0;
                        for (const std::int64_t part : done) sum += part;
                        report(sum, total);
                      });
    // With what it has already: a tied head is listed only beside its embedding.
    SlabNames all_there = holdings_[&host];
    all_there.insert(lacking[i].begin(), lacking[i].end());
    host.client->commit(host.store, subset(*manifest_, all_there));
  });
  hosts.throw_problems("slabs cannot be shipped");
  for (std::size_t i = 0; i < all.size(); ++i)
    holdings_[&all[i]].insert(lacking[i].begin(), lacking[i].end());
}

}  // namespace stagecoach
