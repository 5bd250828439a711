// How a rank tells whoever launched it how the job ended, of which mpirun may say something else or
// nothing: a file on the rank's host, whose name has the exit code.
#pragma once

namespace stagecoach {

// `--done-file=FILE` among a process's words: FILE it will be, or FILE.CODE. Called before words
// are parsed, which may be what fails.
void find_last_word_file(int argc, const char* const* argv);
bool has_last_word_file();

// Writes it, with the number of bytes that this process has printed. Nothing without a file, or of
// a lost peer and Ctrl-C, after which a launch may go on. Throws what keeps it from being written.
void leave_last_word(int code);
// Amid an error, which matters more than that.
void try_to_leave_last_word(int code);

}  // namespace stagecoach
