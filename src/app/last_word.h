// How ranks tell whoever launched them how the job ended, of which mpirun may say something else or
// nothing: by files on their hosts, whose names have the exit code.
#pragma once

namespace stagecoach {

// `--done-file=FILE` among a process's words. Called before words are parsed, which may be what
// fails.
void find_last_word_file(int argc, const char* const* argv);

// Whether somebody wants to know of such an end: not without a file, nor of a lost peer and Ctrl-C,
// after which a launch may go on.
bool is_worth_a_last_word(int code);
// If it is. Of what all ranks agree on: FILE, or FILE.CODE after an error, with the number of bytes
// that this process has printed. Throws what keeps it from being written.
void leave_last_word(int code);
// Likewise of what one rank ends the job for: FILE.abort.CODE, if it can be written within a
// second. Nothing of internal errors either, which may be what a lost peer has led to.
void leave_abort_word(int code);

}  // namespace stagecoach
