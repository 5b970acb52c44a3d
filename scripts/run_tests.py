#!/usr/bin/env python3
"""Runs `cargo test` with the given arguments and ends with one line that sums up all its test binaries.

    scripts/run_tests.py --workspace

The exit code is cargo's.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

RESULT = re.compile(r"^test result: .*?(\d+) passed; (\d+) failed;")


def main(arguments: list[str]) -> int:
    command = ["cargo", "test", "--locked", "--no-fail-fast", *arguments]
    cargo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")
    signal.signal(signal.SIGTERM, lambda *_: cargo.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # cargo gets the terminal's own; its end is ours
    passed = failed = 0
    for line in cargo.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        result = RESULT.match(line)
        if result:
            passed, failed = passed + int(result[1]), failed + int(result[2])
    code = cargo.wait()
    if code != 0 and failed == 0:
        print(f"cargo test ended with code {code}, and not for a failed test: see above")
    print(f"{passed} passed, {failed} failed", flush=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
