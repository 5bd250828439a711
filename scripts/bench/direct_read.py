#!/usr/bin/env python3
"""How fast files can be read past the page cache: what a streaming engine can be measured against. Threads take
turns at blocks, in order, with O_DIRECT into buffers of their own. Prints one JSON object."""

import argparse
import json
import mmap
import os
import sys
import threading
import time

ALIGNMENT = 4096


class Blocks:
    """Deals (descriptor, offset, length) in order; goes round until time is up if there is a time."""

    def __init__(self, files, block_bytes, seconds):
        self.files, self.block_bytes = files, block_bytes
        self.end = time.monotonic() + seconds if seconds else None
        self.lock = threading.Lock()
        self.blocks = self.deal()

    def deal(self):
        while True:
            for descriptor, size in self.files:
                for offset in range(0, size, self.block_bytes):
                    if self.end and time.monotonic() >= self.end:
                        return
                    yield descriptor, offset
            if not self.end:
                return

    def next(self):
        with self.lock:
            return next(self.blocks, None)


def read_files(paths, threads=8, block_bytes=4 << 20, seconds=None):
    """Reads all of the files once, or over and over for so many seconds. Returns (bytes, seconds)."""
    files, totals, errors = [], [0] * threads, []
    try:
        for path in paths:
            files.append((os.open(path, os.O_RDONLY | os.O_DIRECT), os.path.getsize(path)))
        blocks = Blocks([f for f in files if f[1] > 0], block_bytes, seconds)

        def work(index):
            try:
                with mmap.mmap(-1, block_bytes) as buffer:  # a mapping begins at a page
                    while (block := blocks.next()) is not None:
                        totals[index] += os.preadv(block[0], [buffer], block[1])
            except (OSError, ValueError) as error:
                errors.append(error)

        begin = time.monotonic()
        workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.monotonic() - begin
    finally:
        for descriptor, _ in files:
            os.close(descriptor)
    if errors:
        raise errors[0]
    return sum(totals), took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--block-bytes", type=int, default=4 << 20, help=f"a multiple of {ALIGNMENT}")
    parser.add_argument("--seconds", type=float, help="go round for so long, instead of once")
    flags = parser.parse_args()
    if flags.block_bytes < 1 or flags.block_bytes % ALIGNMENT or flags.threads < 1:
        parser.error(f"expected one thread at least, and blocks of a multiple of {ALIGNMENT} bytes")
    try:
        total, took = read_files(flags.files, flags.threads, flags.block_bytes, flags.seconds)
    except OSError as error:
        sys.exit(f"direct_read.py: {error}")
    print(json.dumps({"bytes": total, "seconds": took, "bytes_per_s": total / took}))


if __name__ == "__main__":
    main()
