#include "text/sentencepiece.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "text/added_token_table.h"
#include "text/bpe_tokenizer.h"
#include "text/protobuf.h"
#include "text/tokenizer_config.h"

namespace stagecoach {
namespace {

using Wire = ProtoField::Wire;

constexpr const char* kSpace = "\u2581";
constexpr std::size_t kMostPieceBytes = 1024;  // bounds the work of looking for a piece's halves

Error unsupported(const std::string& where, const std::string& what) {
  return data_error(fmt::format("{}: SentencePiece {} is not supported", where, what),
                    "save the tokenizer with transformers, which writes a tokenizer.json");
}

SentencePiece parse_piece(std::string_view message, std::size_t id, const std::string& where) {
  ProtoReader reader(message, where);
  SentencePiece piece;
  while (const auto field = reader.next()) {
    if (field->is(1, Wire::kBytes)) piece.text = field->bytes;
    if (field->is(2, Wire::kFixed32))
      piece.score = std::bit_cast<float>(static_cast<std::uint32_t>(field->value));
    if (field->is(3, Wire::kVarint)) {
      if (field->value < 1 || field->value > 6)
        throw data_error(fmt::format("{}: the piece {} should have a type in 1..6, found {}", where,
                                     id, field->value));
      piece.type = static_cast<PieceType>(field->value);
    }
  }
  if (piece.text.empty() || !is_valid_utf8(piece.text) || piece.text.size() > kMostPieceBytes)
    throw data_error(fmt::format("{}: the piece {} should be 1 to {} bytes of UTF-8, found {}",
                                 where, id, kMostPieceBytes, quote_name(piece.text)));
  if (!std::isfinite(piece.score))
    throw data_error(fmt::format("{}: the score of the piece {} should be finite, found {}", where,
                                 id, piece.score));
  return piece;
}

void parse_trainer(std::string_view message, SentencePieceModel& model, const std::string& where) {
  static constexpr std::array<const char*, 5> kAlgorithms = {"", "UNIGRAM", "BPE", "WORD", "CHAR"};
  std::uint64_t algorithm = 1;
  const auto id = [](const ProtoField& field) {  // an int32, whose sign fills 64 bits
    return std::int64_t{static_cast<std::int32_t>(field.value)};
  };
  ProtoReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->is(3, Wire::kVarint)) algorithm = field->value;
    if (field->is(24, Wire::kVarint) && field->value != 0)
      throw unsupported(where, "with white space as a suffix");
    if (field->is(35, Wire::kVarint)) model.byte_fallback = field->value != 0;
    if (field->is(41, Wire::kVarint)) model.bos_id = id(*field);
    if (field->is(42, Wire::kVarint)) model.eos_id = id(*field);
  }
  if (algorithm != 2)
    throw unsupported(where, fmt::format("of the type {} (only BPE is)",
                                         algorithm < kAlgorithms.size() && algorithm > 0
                                             ? kAlgorithms[algorithm]
                                             : std::to_string(algorithm)));
}

// The denormalizer has the same fields; a character map there would change decoded text.
void parse_normalizer_spec(std::string_view message, SentencePieceModel* model,
                           const std::string& where) {
  std::string name;
  bool has_map = false;
  ProtoReader reader(message, where);
  while (const auto field = reader.next()) {
    if (field->is(1, Wire::kBytes)) name = field->bytes;
    if (field->is(2, Wire::kBytes)) has_map = !field->bytes.empty();
    if (model == nullptr || field->wire != Wire::kVarint) continue;
    if (field->number == 3) model->add_dummy_prefix = field->value != 0;
    if (field->number == 4) model->remove_extra_whitespaces = field->value != 0;
    if (field->number == 5 && field->value == 0)
      throw unsupported(where, "without escaped white space");
  }
  if (has_map) throw unsupported(where, fmt::format("with the normalisation {}", quote_name(name)));
}

// "<0x0A>": what byte fallback looks for. 256 different ones are all bytes.
bool names_a_byte(const std::string& text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  return text.size() == 6 && text.starts_with("<0x") && text.ends_with('>') &&
         kDigits.find(text[3]) != kDigits.npos && kDigits.find(text[4]) != kDigits.npos;
}

void check_pieces(const SentencePieceModel& model, const std::string& where) {
  std::array<std::size_t, 7> count{};
  for (const SentencePiece& piece : model.pieces) ++count[static_cast<std::size_t>(piece.type)];
  const auto of = [&](PieceType type) { return count[static_cast<std::size_t>(type)]; };
  if (of(PieceType::kUnknown) != 1)
    throw data_error(fmt::format("{}: expected one piece of the type UNKNOWN, found {} among {}",
                                 where, of(PieceType::kUnknown), model.pieces.size()));
  const std::size_t bytes = model.byte_fallback ? 256 : 0;
  if (of(PieceType::kByte) != bytes)
    throw data_error(
        fmt::format("{}: expected {} pieces of the type BYTE as byte_fallback is {}, "
                    "found {}",
                    where, bytes, model.byte_fallback, of(PieceType::kByte)));
  for (const SentencePiece& piece : model.pieces) {
    if (piece.type == PieceType::kByte && !names_a_byte(piece.text))
      throw data_error(fmt::format("{}: a piece of the type BYTE should be like <0x0A>, found {}",
                                   where, quote_name(piece.text)));
    const bool double_space = piece.text.find("  ") != std::string::npos;
    if (model.remove_extra_whitespaces && piece.type == PieceType::kUserDefined && double_space)
      throw unsupported(where, "with a user-defined piece of spaces where spaces are removed");
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece(std::string_view file, const std::string& where) {
  SentencePieceModel model;
  std::string_view trainer;
  std::string_view normalizer;
  ProtoReader reader(file, where);
  while (const auto field = reader.next()) {
    if (field->is(1, Wire::kBytes))
      model.pieces.push_back(parse_piece(field->bytes, model.pieces.size(), where + ", pieces"));
    if (field->is(2, Wire::kBytes)) trainer = field->bytes;
    if (field->is(3, Wire::kBytes)) normalizer = field->bytes;
    if (field->is(5, Wire::kBytes))
      parse_normalizer_spec(field->bytes, nullptr, where + ", denormalizer_spec");
  }
  parse_trainer(trainer, model, where + ", trainer_spec");
  parse_normalizer_spec(normalizer, &model, where + ", normalizer_spec");
  check_pieces(model, where);
  return model;
}

std::string serialize_sentencepiece(const SentencePieceModel& model) {
  std::string file;
  for (const SentencePiece& piece : model.pieces) {
    std::string message;
    append_proto_bytes(message, 1, piece.text);
    append_proto_float(message, 2, piece.score);
    append_proto_number(message, 3, static_cast<std::uint64_t>(piece.type));
    append_proto_bytes(file, 1, message);
  }
  std::string trainer;
  append_proto_number(trainer, 3, 2);
  append_proto_number(trainer, 35, model.byte_fallback ? 1 : 0);
  append_proto_number(trainer, 41, static_cast<std::uint64_t>(model.bos_id));
  append_proto_number(trainer, 42, static_cast<std::uint64_t>(model.eos_id));
  append_proto_bytes(file, 2, trainer);
  std::string normalizer;
  append_proto_bytes(normalizer, 1, "identity");
  append_proto_number(normalizer, 3, model.add_dummy_prefix ? 1 : 0);
  append_proto_number(normalizer, 4, model.remove_extra_whitespaces ? 1 : 0);
  append_proto_bytes(file, 3, normalizer);
  return file;
}

namespace {

// The frame's id for a role: the token that `config` names, or the model's own.
std::vector<TokenId> frame_ids(const TokenizerConfig& config, const AddedTokenTable& table,
                               const char* role, std::int64_t own, const std::string& where) {
  std::optional<TokenId> id;
  const std::optional<std::string> name = config.special_token(role);
  if (name)
    id = table.id_of(*name);
  else if (own >= 0 && own <= std::numeric_limits<TokenId>::max() &&
           table.has_id(static_cast<TokenId>(own)))
    id = static_cast<TokenId>(own);
  if (!id)
    throw data_error(fmt::format("{}: the {} {} should be added, but has no id", where, role,
                                 name ? quote_name(*name) : fmt::format("{}", own)));
  return {*id};
}

// The library takes unused pieces apart again after merging through them; here they must be such
// that no merge leads to them.
void check_unused(const SentencePieceModel& model, const BpeModel& bpe, const std::string& where) {
  for (const SentencePiece& piece : model.pieces) {
    if (piece.type == PieceType::kUnused && bpe.could_build(piece.text))
      throw unsupported(where, fmt::format("with the unused piece {}, which merges could build",
                                           quote_name(piece.text)));
  }
}

BpeModel make_model(const SentencePieceModel& model, const std::string& where) {
  Vocabulary vocabulary;
  std::vector<ScoredPiece> mergeable;
  BpeOptions options{.fuse_unknown = true, .byte_fallback = model.byte_fallback};
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePiece& piece = model.pieces[i];
    const auto id = static_cast<std::int64_t>(i);
    vocabulary.add(piece.text, id, where);
    if (piece.type == PieceType::kUnknown) options.unknown_token = piece.text;
    if (piece.type == PieceType::kNormal)
      mergeable.push_back({static_cast<TokenId>(id), piece.score});
  }
  BpeModel bpe =
      BpeModel::from_scores(std::move(vocabulary), std::move(mergeable), std::move(options), where);
  check_unused(model, bpe, where);
  return bpe;
}

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                        const TokenizerConfig& config,
                                                        const std::string& where) {
  BpeModel bpe = make_model(model, where);
  AddedTokenTable table(bpe.vocabulary());
  config.add_tokens_to(table);
  std::vector<AddedToken> user_defined;
  for (std::size_t i = 0; i < model.pieces.size(); ++i) {
    const SentencePiece& piece = model.pieces[i];
    const auto id = static_cast<TokenId>(i);
    if (piece.type == PieceType::kControl || piece.type == PieceType::kUnknown)
      table.add({.content = piece.text, .special = true}, id, where);
    if (piece.type != PieceType::kUserDefined) continue;
    user_defined.push_back({.id = id, .content = piece.text});
    table.add({.content = piece.text, .markup_only = true}, id, where);
  }
  SpecialFrame frame;
  if (config.flag("add_bos_token", true))
    frame.before = frame_ids(config, table, "bos_token", model.bos_id, where);
  if (config.flag("add_eos_token", false))
    frame.after = frame_ids(config, table, "eos_token", model.eos_id, where);

  const bool prefix = config.flag("add_prefix_space", model.add_dummy_prefix);
  using Prepend = MetaspaceStep::Prepend;
  const MetaspaceStep escape{.prepend = prefix ? Prepend::kFirst : Prepend::kNever,
                             .even_before_space = true,
                             .split = false};
  std::vector<NormalizerStep> normalizer;
  if (model.remove_extra_whitespaces) normalizer.emplace_back(CollapseSpacesStep{});
  const bool strip = prefix || model.remove_extra_whitespaces;
  Normalizer collapse(std::move(normalizer));
  AddedTokens added(table.take(), collapse);
  return make_bpe_tokenizer({.added = std::move(added),
                             .normalizer = std::move(collapse),
                             .pre_tokenizer = PreTokenizer({escape}),
                             .user_defined = AddedTokens(std::move(user_defined), Normalizer()),
                             .model = std::move(bpe),
                             .frame = std::move(frame),
                             .decoder = {ReplaceStep{kSpace, " "}, ByteFallbackDecoding{},
                                         FuseDecoding{}, StripDecoding{.start = strip ? 1U : 0U}}});
}

}  // namespace stagecoach
