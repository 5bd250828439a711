#include "text/pretokenizer.h"

#include "text/byte_level.h"
#include "text/normalizer.h"

namespace stagecoach {
namespace {

void cut(const Piece& piece, const Split& split, std::vector<Piece>& out) {
  for (const Range& range : split_ranges(piece.text, split))
    out.push_back({piece.text.substr(range.begin, range.end - range.begin),
                   piece.at_start && range.begin == 0});
}

struct Apply {
  Piece piece;
  std::vector<Piece>& out;

  void operator()(const SplitStep& step) { cut(piece, step.split, out); }

  void operator()(const ByteLevelStep& step) {
    if (step.add_prefix_space && !piece.text.starts_with(' ')) piece.text.insert(0, 1, ' ');
    const std::size_t first = out.size();
    if (step.use_regex) {
      static const Split kWords = {.pattern = gpt2_pattern()};
      cut(piece, kWords, out);
    } else {
      out.push_back(std::move(piece));
    }
    for (std::size_t i = first; i < out.size(); ++i) out[i].text = to_byte_level(out[i].text);
  }

  void operator()(const MetaspaceStep& step) {
    using Prepend = MetaspaceStep::Prepend;
    piece.text = replace_all(std::move(piece.text), {" ", step.replacement});
    const bool wanted =
        step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && piece.at_start);
    if (wanted && (step.even_before_space || !piece.text.starts_with(step.replacement)))
      piece.text.insert(0, step.replacement);
    if (step.split) {
      cut(piece,
          {.pattern = literal_pattern(step.replacement),
           .behavior = SplitBehavior::kMergedWithNext},
          out);
    } else {
      out.push_back(std::move(piece));
    }
  }
};

}  // namespace

std::vector<Piece> PreTokenizer::apply(Piece text) const {
  std::vector<Piece> pieces;
  if (text.text.empty()) return pieces;  // nothing is put before nothing
  pieces.push_back(std::move(text));
  for (const PreTokenizerStep& step : steps_) {
    std::vector<Piece> next;
    next.reserve(pieces.size());
    for (Piece& piece : pieces) std::visit(Apply{std::move(piece), next}, step);
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace stagecoach
