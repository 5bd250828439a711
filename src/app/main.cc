#include "app/command.h"

int main(int argc, char** argv) {
  return stagecoach::run_stagecoach(argc, argv);
}
