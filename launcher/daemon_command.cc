#include "launcher/daemon_command.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::size_t kMostBytes = std::size_t{1} << 20;

[[noreturn]] void refuse(const std::string& why) {
  throw usage_error(fmt::format("an agent starts only Open MPI's daemon, orted or prted: {}", why));
}

bool is_name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// Reads the text from left to right.
class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}

  // The next word, with quotes taken off and $NAME replaced; nullopt at a ';' or the end.
  std::optional<std::string> word() {
    skip_blanks();
    if (at_ == text_.size() || text_[at_] == ';') return std::nullopt;
    std::string word;
    while (at_ < text_.size() && text_[at_] != ' ' && text_[at_] != '\t' && text_[at_] != ';') {
      const char c = text_[at_++];
      if (c == '"' || c == '\'')
        quoted(c, word);
      else
        plain(c, word);
    }
    return word;
  }
  // Steps over a ';'; false at the end.
  bool next_command() {
    skip_blanks();
    if (at_ == text_.size()) return false;
    ++at_;
    return true;
  }

 private:
  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
  }
  void plain(char c, std::string& word) {
    if (c == '$') {
      variable(word);
      return;
    }
    if (std::string_view("|&<>()`\\\n*?{}!#").find(c) != std::string_view::npos)
      refuse(fmt::format("unexpected '{}'", c));
    word += c;
  }
  void quoted(char quote, std::string& word) {
    while (at_ < text_.size() && text_[at_] != quote) {
      const char c = text_[at_++];
      if (quote == '"' && (c == '`' || c == '\\'))
        refuse(fmt::format("unexpected '{}' in quotes", c));
      if (quote == '"' && c == '$')
        variable(word);
      else
        word += c;
    }
    if (at_ == text_.size()) refuse("a quote does not end");
    ++at_;
  }
  void variable(std::string& word) {
    std::string name;
    while (at_ < text_.size() && is_name_character(text_[at_])) name += text_[at_++];
    if (name.empty()) refuse("'$' without a name");
    if (const char* value = std::getenv(name.c_str())) word += value;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

// NAME=value, whose value is of no shell's business any more.
bool is_assignment(const std::string& word) {
  const std::size_t equals = word.find('=');
  return equals != std::string::npos && equals > 0 &&
         std::all_of(word.begin(), word.begin() + static_cast<std::ptrdiff_t>(equals),
                     is_name_character) &&
         std::isdigit(static_cast<unsigned char>(word.front())) == 0;
}

bool is_daemon(const std::string& word) {
  const std::string name = std::filesystem::path(word).filename();
  return name == "orted" || name == "prted";
}

}  // namespace

DaemonCommand parse_daemon_command(const std::string& text) {
  if (text.size() > kMostBytes) refuse("the command is too long");
  if (text.find('\0') != std::string::npos) refuse("a zero byte");
  DaemonCommand command;
  Reader reader(text);
  do {
    Words words;
    while (const auto word = reader.word()) words.push_back(*word);
    if (words.empty()) continue;
    if (!command.words.empty()) refuse("something follows the daemon");
    if (words.size() == 1 && is_assignment(words.front())) {
      command.environment.push_back(words.front());
    } else if (words.front() == "export") {
      for (std::size_t i = 1; i < words.size(); ++i)
        if (!std::all_of(words[i].begin(), words[i].end(), is_name_character))
          refuse("export takes names");
    } else if (is_daemon(words.front())) {
      command.words = words;
    } else {
      refuse(fmt::format("found '{}'", words.front().substr(0, 100)));
    }
  } while (reader.next_command());
  if (command.words.empty()) refuse("the command names none");
  return command;
}

}  // namespace stagecoach
