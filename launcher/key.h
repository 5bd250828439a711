// The secret that the PCs of one cluster share: who has it may move slabs and start ranks there.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>

namespace stagecoach {

inline constexpr std::size_t kKeyBytes = 32;

struct Key {
  std::array<std::uint8_t, kKeyBytes> bytes{};

  // From the system's generator. Throws resource_error when it has none.
  static Key random();
  std::string text() const;  // 64 hexadecimal digits
  bool operator==(const Key&) const = default;
};

// `where` names the text in errors. Throws data_error.
Key parse_key(const std::string& text, const std::string& where);

// Throws data_error when it is no key, resource_error when others than its owner may read it.
Key read_key_file(const std::filesystem::path& file);

// ${XDG_CONFIG_HOME:-$HOME/.config}/stagecoach/key; empty where neither is set.
std::filesystem::path default_key_file();

}  // namespace stagecoach
