#include "app/generation.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace stagecoach {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  std::size_t cut = std::string::npos;
  for (const std::string& stop : stops_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, {}).substr(0, cut);
  }
  // The longest end of the text that begins a stop string stays here.
  std::size_t keep = 0;
  for (const std::string& stop : stops_)
    for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n)
      if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

Generation::Generation(std::optional<std::string> prompt, std::vector<TokenId> prompt_ids,
                       const Tokenizer* tokenizer, const GenerationRules& rules)
    : prompt_(std::move(prompt)),
      prompt_ids_(std::move(prompt_ids)),
      rules_(rules),
      stops_(rules.stops) {
  if (tokenizer != nullptr) detokenizer_.emplace(*tokenizer, prompt_ids_);
}

void Generation::admit() {
  begin_ns_ = last_token_ns_ = now_ns();
}

std::string Generation::push(TokenId id) {
  ids_.push_back(id);
  last_token_ns_ = now_ns();
  const bool eos = std::find(rules_.eos_token_ids.begin(), rules_.eos_token_ids.end(), id) !=
                   rules_.eos_token_ids.end();
  std::string certain;
  if (detokenizer_) certain = stops_.push(detokenizer_->push(id));
  ended_ = (eos && !rules_.ignore_eos) || stops_.stopped();
  text_ += certain;
  return certain;
}

std::string Generation::finish() {
  finished_ = true;
  std::string rest;
  if (detokenizer_) {
    rest = stops_.push(detokenizer_->finish());
    rest += stops_.finish();
    if (stops_.stopped()) ended_ = true;
  }
  text_ += rest;
  return rest;
}

Json Generation::to_json() const {
  const double seconds = static_cast<double>(last_token_ns_ - begin_ns_) * 1e-9;
  Json json;
  json["prompt"] = prompt_ ? Json(*prompt_) : Json(nullptr);
  json["prompt_ids"] = prompt_ids_;
  json["ids"] = ids_;
  json["text"] = detokenizer_ ? Json(text_) : Json(nullptr);
  json["finish_reason"] = ended_ ? "stop" : "length";
  json["seconds"] = seconds;
  json["tokens_per_second"] =
      seconds > 0 ? static_cast<double>(ids_.size() - replayed_) / seconds : 0;
  return json;
}

}  // namespace stagecoach
