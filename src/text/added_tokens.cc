#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "text/unicode.h"

namespace stagecoach {
namespace {

bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  if (begin > 0 && is_word(code_point_before(text, begin).value)) return false;
  return end == text.size() || !is_word(code_point_at(text, end).value);
}

std::size_t skip_space_before(std::string_view text, std::size_t position) {
  while (position > 0) {
    const CodePoint c = code_point_before(text, position);
    if (!is_white_space(c.value)) break;
    position -= c.bytes;
  }
  return position;
}

std::size_t skip_space_after(std::string_view text, std::size_t position) {
  while (position < text.size()) {
    const CodePoint c = code_point_at(text, position);
    if (!is_white_space(c.value)) break;
    position += c.bytes;
  }
  return position;
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer)
    : tokens_(std::move(tokens)) {
  for (const AddedToken& token : tokens_) {
    std::string text = token.normalized ? normalizer.apply(token.content) : token.content;
    by_id_.insert_or_assign(token.id, Pattern{text, &token});
    if (!token.markup_only) (token.normalized ? normalized_ : raw_).add(std::move(text), token);
    contents_.add(token.content, token);
    largest_id_ = std::max(largest_id_, token.id);
  }
  raw_.sort();
  contents_.sort();
  normalized_.sort();
}

std::optional<AddedTokens::Decoded> AddedTokens::decoded(TokenId id) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return std::nullopt;
  return Decoded{found->second.text, found->second.token->special};
}

void AddedTokens::PatternSet::add(std::string text, const AddedToken& token) {
  if (text.empty()) return;  // a normalizer that erases a token: it never matches
  first_bytes.set(static_cast<unsigned char>(text.front()));
  patterns.push_back({std::move(text), &token});
}

void AddedTokens::PatternSet::sort() {
  // Contents that normalise alike: the lowest id gets them.
  std::sort(patterns.begin(), patterns.end(), [](const Pattern& a, const Pattern& b) {
    return std::pair(std::string_view(a.text), a.token->id) <
           std::pair(std::string_view(b.text), b.token->id);
  });
  const auto same = [](const Pattern& a, const Pattern& b) { return a.text == b.text; };
  patterns.erase(std::unique(patterns.begin(), patterns.end(), same), patterns.end());
}

const AddedTokens::Pattern* AddedTokens::PatternSet::longest_at(std::string_view text,
                                                                std::size_t position) const {
  const Pattern* longest = nullptr;
  auto low = patterns.begin();
  auto high = patterns.end();
  for (std::size_t depth = 0; low != high; ++depth) {
    if (low->text.size() == depth) longest = &*low++;
    if (position + depth == text.size()) break;
    const auto wanted = static_cast<unsigned char>(text[position + depth]);
    const auto byte = [depth](const Pattern& p) {
      return static_cast<unsigned char>(p.text[depth]);
    };
    low = std::partition_point(low, high, [&](const Pattern& p) { return byte(p) < wanted; });
    high = std::partition_point(low, high, [&](const Pattern& p) { return byte(p) == wanted; });
  }
  return longest;
}

std::optional<TokenId> AddedTokens::id_of(std::string_view content) const {
  const Pattern* match = contents_.longest_at(content, 0);
  if (match == nullptr || match->text != content) return std::nullopt;
  return match->token->id;
}

std::vector<Segment> AddedTokens::split_marked(std::string_view text,
                                               const std::vector<Range>& marked) const {
  return split(text, contents_, marked);
}

std::vector<Segment> AddedTokens::split(std::string_view text, const PatternSet& set,
                                        const std::vector<Range>& ranges) {
  std::vector<Segment> segments;
  std::size_t done = 0;  // everything before it belongs to some segment
  for (const Range& range : ranges) {
    const std::string_view searched = text.substr(0, range.end);
    for (std::size_t position = range.begin; position < range.end;) {
      const Pattern* match = set.first_bytes.test(static_cast<unsigned char>(text[position]))
                                 ? set.longest_at(searched, position)
                                 : nullptr;
      if (match == nullptr) {
        ++position;
        continue;
      }
      const AddedToken& token = *match->token;
      std::size_t begin = position;
      std::size_t end = position + match->text.size();
      // The search goes on behind the match itself, even where it is discarded or swallows more.
      position = end;
      if (token.single_word && !stands_alone(text, begin, end)) continue;
      if (token.lstrip) begin = std::max(skip_space_before(text, begin), done);
      if (token.rstrip) end = skip_space_after(text, end);
      if (done < begin) segments.push_back({done, begin, std::nullopt});
      segments.push_back({begin, end, token.id});
      done = end;
    }
  }
  if (done != text.size()) segments.push_back({done, text.size(), std::nullopt});
  return segments;
}

}  // namespace stagecoach
