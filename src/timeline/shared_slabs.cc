#include "base/error.h"
#include "timeline/run_info.h"

namespace stagecoach {

std::string shared_slabs_note(std::int64_t model_layers, std::int64_t distinct_layers) {
  return fmt::format(
      "the store's {} layers share {} slabs: times are real, memory and results are not those of "
      "the "
      "full model",
      model_layers, distinct_layers);
}

}  // namespace stagecoach
