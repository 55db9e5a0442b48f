"""Run every benchmark and print its table."""

from benchmarks import command_line, export

if __name__ == "__main__":
    for benchmark in (command_line, export):
        print(benchmark.table(), end="\n\n", flush=True)
