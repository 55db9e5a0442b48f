"""Run every benchmark, or those that are named, and print their tables."""

import sys
from importlib import import_module

ALL = (
    "command_line",
    "export",
    "session_check",
    "login_storm",
    "asking",
    "big_table",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or ALL:
        print(import_module(f"benchmarks.{name}").table(), end="\n\n", flush=True)
