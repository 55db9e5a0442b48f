"""The child process of `local`: llama.cpp's HTTP server on a free port of loopback.

Usage: python -m providers.local_server MODEL_FILE CONTEXT_TOKENS THREADS ALIAS, with
the key as the first line of standard input. Prints its address. It ends at the end of
its standard input, which comes even when its parent is killed.
"""

import os
import sys


def main() -> None:
    """Serve until standard input ends."""
    model_file, context_tokens, threads, alias = sys.argv[1:]
    key = sys.stdin.readline().strip()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model_file
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = int(context_tokens)
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.ui = False
    params.verbosity = 0
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # The server's threads would hold the process for as long as an answer takes.
    os._exit(0)


if __name__ == "__main__":
    main()
