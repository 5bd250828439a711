// One transformer block, for every family and every backend.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "engine/batch.h"
#include "engine/kv_cache.h"
#include "engine/layer_source.h"
#include "engine/op_timeline.h"
#include "engine/workspace.h"
#include "model/model_spec.h"
#include "timeline/timeline.h"

namespace stagecoach {

struct BlockContext {
  const ModelSpec& spec;
  Backend& backend;
  LayerSource& weights;
  KvCache& kv;
  Workspace& workspace;
  OpTimeline& ops;
};

// Operations of one layer's attention part (Span::flops).
std::int64_t attention_flops(const ModelSpec& spec, std::span<const TokenRun> runs);

// workspace.hidden (rows, hidden_size) → the same buffer, after layer `layer`. Rows are those of
// `runs`; their keys and values are appended to the cache, which must have room (KvCache::reserve).
// For rotary models workspace.cos and .sin hold the rows' angles. `next`: when this layer's weights
// are wanted again. `spans`: of the runs in this layer, from what was sent last
// (Backend::send_spans).
void forward_block(const BlockContext& context, std::int64_t layer, std::span<const TokenRun> runs,
                   std::span<const KvSpan> spans, const BatchLabel& label, NextUse next);

}  // namespace stagecoach
