"""Run every benchmark and print its table."""

from benchmarks import command_line

if __name__ == "__main__":
    print(command_line.table())
