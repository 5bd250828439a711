#include <memory>

#include "app/command.h"
#include "app/output.h"
#include "app/settings.h"
#include "app/text_input.h"
#include "base/error.h"

namespace stagecoach {

Command tokenize_command(CLI::App& parent) {
  struct Flags {
    std::string source, string, file;
    bool no_bos = false, json = false;
  };
  auto flags = std::make_shared<Flags>();
  CLI::App* app =
      parent.add_subcommand("tokenize", "Text to token ids, as the model's own tokenizer does it");
  app->add_option("SOURCE", flags->source, "Store, Hugging Face directory or .gguf file")
      ->required();
  app->add_option("--string", flags->string, "The text")->type_name("TEXT");
  app->add_option("--file", flags->file, "A file of text, - for stdin")->type_name("FILE");
  app->add_flag("--no-bos", flags->no_bos, "Without the tokens that the tokenizer adds");
  app->add_flag("--json", flags->json, "As JSON");
  return {app, [app, flags] {
            require_exactly_one(*app, {"--string", "--file"});
            const auto tokenizer = require_tokenizer(flags->source);
            const bool from_file = app->count("--file") > 0;
            const std::string text = from_file ? read_text(flags->file) : flags->string;
            if (!is_valid_utf8(text)) throw data_error("--string is not valid UTF-8");
            const std::vector<TokenId> ids =
                tokenizer->encode(text, {.add_special_tokens = !flags->no_bos});
            if (flags->json) {
              print_json_line({{"ids", ids}});
            } else {
              print(fmt::format("{}\n", fmt::join(ids, " ")));
            }
            return 0;
          }};
}

}  // namespace stagecoach
