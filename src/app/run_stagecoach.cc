#include <string>
#include <vector>

#include "app/command.h"
#include "app/last_word.h"
#include "app/output.h"
#include "app/run_job.h"
#include "app/settings.h"
#include "app/signals.h"
#include "base/error.h"
#include "base/version.h"
#include "pipeline/agreement.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// Every rank parses the same words; only rank 0 complains about them.
bool speaks() {
  return launched_rank() == 0;
}

int report(const std::exception& exception) {
  const Error error = as_error(exception);
  const bool told = dynamic_cast<const AgreedError*>(&exception) != nullptr;
  leave_abort_word(error.exit_code());
  if (!told) print_error_of_launched_rank(error);
  return error.exit_code();
}

int parse_and_run(CLI::App& app, const std::vector<Command>& commands, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help, --version
    return speaks() ? app.exit(success) : 0;
  } catch (const CLI::ParseError& error) {
    std::string name = "stagecoach";
    for (const Command& command : commands)
      if (command.app->parsed()) name += " " + command.app->get_name();
    throw usage_error(error.what(), name + " --help");
  }
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    if (!command.parallel && launched_size() > 1)
      throw usage_error(fmt::format("stagecoach {} runs as one process, found {} ranks",
                                    command.app->get_name(), launched_size()),
                        "run it without mpirun");
    try {
      apply_environment_and_job(*command.app);
      if (command.check) command.check();
      return command.run();
    } catch (const AgreedError&) {
      throw;
    } catch (const Error& error) {
      // Settings may be wrong on one host alone (its job file, its environment): the others must
      // hear of it.
      if (command.parallel && launched_size() > 1) share_failure(error);
      throw;
    }
  }
  throw usage_error("no command was given", "stagecoach --help");
}

}  // namespace

int run_stagecoach(int argc, char** argv) {
  try {
    find_last_word_file(argc, argv);
    install_signal_handlers();
    CLI::App app("Stagecoach runs transformers that fit on none of your PCs, on several of them.",
                 "stagecoach");
    app.set_version_flag("--version", std::string("stagecoach ") + STAGECOACH_VERSION);
    app.require_subcommand(0, 1);
    app.footer(
        "Several machines: mpirun --oversubscribe --bind-to none -np N stagecoach "
        "generate|score|time|probe …\n"
        "Exit codes: 0 done, 1 internal error, 2 usage, 3 bad data, 4 not enough resources, 5 peer "
        "lost, 130 interrupted.");
    const std::vector<Command> commands{
        import_command(app),     create_command(app), list_command(app),
        inspect_command(app),    verify_command(app), tokenize_command(app),
        generate_command(app),   score_command(app),  time_command(app),
        report_command(app),     probe_command(app),  plan_command(app),
        launch_command(app),     doctor_command(app), agent_command(app),
        agent_shell_command(app)};
    return parse_and_run(app, commands, argc, argv);
  } catch (const std::exception& exception) {
    return report(exception);
  }
}

}  // namespace stagecoach
