#include "text/decoder.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "text/byte_level.h"
#include "text/unicode.h"

namespace stagecoach {
namespace {

class Output : public DecoderStage {
 public:
  explicit Output(std::string& output) : output_(output) {}
  void push(std::string piece) override { output_ += piece; }
  void finish() override {}

 private:
  std::string& output_;
};

class InnerStage : public DecoderStage {
 public:
  explicit InnerStage(std::unique_ptr<DecoderStage> next) : next_(std::move(next)) {}
  void finish() override { next_->finish(); }

 protected:
  void emit(std::string piece) { next_->push(std::move(piece)); }

 private:
  std::unique_ptr<DecoderStage> next_;
};

class Replacer : public InnerStage {
 public:
  Replacer(std::unique_ptr<DecoderStage> next, ReplaceStep step)
      : InnerStage(std::move(next)), step_(std::move(step)) {}
  void push(std::string piece) override { emit(replace_all(std::move(piece), step_)); }

 private:
  ReplaceStep step_;
};

class ByteLevelDecoder : public InnerStage {
 public:
  using InnerStage::InnerStage;
  void push(std::string piece) override { emit(from_byte_level(piece)); }
};

class Spacer : public InnerStage {
 public:
  using InnerStage::InnerStage;
  void push(std::string piece) override {
    emit(first_ ? std::move(piece) : " " + piece);
    first_ = false;
  }

 private:
  bool first_ = true;
};

std::optional<char> byte_of_token(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  unsigned value = 0;
  const char* const end = token.data() + 5;
  const auto [stop, error] = std::from_chars(token.data() + 3, end, value, 16);
  if (error != std::errc() || stop != end) return std::nullopt;
  return static_cast<char>(value);
}

// A run of byte tokens is one piece of text if all of it is valid UTF-8, else U+FFFD for each byte:
// so a run is kept back until it ends or is beyond repair.
class ByteFallbackDecoder : public InnerStage {
 public:
  using InnerStage::InnerStage;

  void push(std::string piece) override {
    const auto byte = byte_of_token(piece);
    if (!byte) {
      end_run();
      emit(std::move(piece));
    } else if (broken_) {
      emit(std::string(kReplacement));
    } else {
      add(*byte);
    }
  }

  void finish() override {
    end_run();
    InnerStage::finish();
  }

 private:
  static constexpr const char* kReplacement = "\xEF\xBF\xBD";

  void add(char byte) {
    run_ += byte;
    const Utf8Form form = classify_utf8(std::string_view(run_).substr(character_)).form;
    if (form == Utf8Form::kComplete) character_ = run_.size();
    if (form == Utf8Form::kInvalid) {
      break_run();
      broken_ = true;
    }
  }

  void break_run() {
    for (std::size_t i = 0; i < run_.size(); ++i) emit(kReplacement);
    run_.clear();
    character_ = 0;
  }

  void end_run() {
    if (character_ != run_.size())
      break_run();
    else if (!run_.empty())
      emit(std::exchange(run_, {}));
    character_ = 0;
    broken_ = false;
  }

  std::string run_;
  std::size_t character_ = 0;  // where the last character of run_ begins; run_.size(): none is open
  bool broken_ = false;        // the run's bytes so far have been replaced, and so will the rest
};

class Stripper : public InnerStage {
 public:
  Stripper(std::unique_ptr<DecoderStage> next, StripDecoding step, bool fused)
      : InnerStage(std::move(next)),
        step_(std::move(step)),
        fused_(fused),
        to_strip_(step_.start) {}

  void push(std::string piece) override {
    std::string text = std::move(held_) + strip_start(std::move(piece));
    held_.clear();
    // The end of a fused text shows only when it has ended.
    std::size_t keep = text.size();
    for (std::size_t i = 0; i < step_.stop && ends_with_content(text, keep); ++i)
      keep -= step_.content.size();
    if (fused_) held_ = text.substr(keep);
    text.resize(keep);
    emit(std::move(text));
  }

 private:
  std::string strip_start(std::string piece) {
    if (!fused_) to_strip_ = step_.start;
    while (to_strip_ > 0 && !piece.empty()) {
      if (!piece.starts_with(step_.content)) {
        to_strip_ = 0;
      } else {
        piece.erase(0, step_.content.size());
        --to_strip_;
      }
    }
    return piece;
  }

  bool ends_with_content(const std::string& text, std::size_t size) const {
    return std::string_view(text).substr(0, size).ends_with(step_.content);
  }

  StripDecoding step_;
  bool fused_;
  std::size_t to_strip_;  // at the start of the current token
  std::string held_;      // dropped at the end, printed otherwise
};

class MetaspaceDecoder : public InnerStage {
 public:
  MetaspaceDecoder(std::unique_ptr<DecoderStage> next, const MetaspaceDecoding& step)
      : InnerStage(std::move(next)),
        drop_from_first_(step.drop_from_first),
        in_first_{step.replacement, ""},
        after_{step.replacement, " "} {}

  void push(std::string piece) override {
    emit(replace_all(std::move(piece), first_ && drop_from_first_ ? in_first_ : after_));
    first_ = false;
  }

 private:
  bool drop_from_first_;
  bool first_ = true;
  ReplaceStep in_first_;
  ReplaceStep after_;
};

struct Start {
  std::unique_ptr<DecoderStage> next;
  bool fused;  // whether what comes in is one token

  using Stage = std::unique_ptr<DecoderStage>;
  Stage operator()(const ReplaceStep& step) {
    return std::make_unique<Replacer>(std::move(next), step);
  }
  Stage operator()(const ByteLevelDecoding&) {
    return std::make_unique<ByteLevelDecoder>(std::move(next));
  }
  Stage operator()(const ByteFallbackDecoding&) {
    return std::make_unique<ByteFallbackDecoder>(std::move(next));
  }
  Stage operator()(const FuseDecoding&) { return std::move(next); }
  Stage operator()(const StripDecoding& step) {
    return std::make_unique<Stripper>(std::move(next), step, fused);
  }
  Stage operator()(const MetaspaceDecoding& step) {
    return std::make_unique<MetaspaceDecoder>(std::move(next), step);
  }
  Stage operator()(const SpacedDecoding&) { return std::make_unique<Spacer>(std::move(next)); }
};

}  // namespace

std::size_t first_fusing(const std::vector<DecoderStep>& steps) {
  const auto fuses = [](const DecoderStep& step) {
    return std::holds_alternative<FuseDecoding>(step) ||
           std::holds_alternative<ByteLevelDecoding>(step);
  };
  return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(), fuses) - steps.begin());
}

std::unique_ptr<DecoderStage> start_decoder(const std::vector<DecoderStep>& steps,
                                            std::string& output) {
  std::unique_ptr<DecoderStage> stage = std::make_unique<Output>(output);
  for (std::size_t i = steps.size(); i-- > 0;)
    stage = std::visit(Start{std::move(stage), i > first_fusing(steps)}, steps[i]);
  return stage;
}

}  // namespace stagecoach
