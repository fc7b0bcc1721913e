"""llama.cpp's server from the xllamacpp extension, with llama-server's own flags: `python -m server.xllama --model …`."""

from __future__ import annotations

import argparse
import signal


def main() -> None:
    """Load the model, serve until a signal ends the process."""
    arguments = _parser().parse_args()
    server = start(arguments)
    assert server is not None
    while True:
        signal.pause()


def _parser() -> argparse.ArgumentParser:
    """llama-server's names, and only those that server/llamacpp.py uses."""
    parser = argparse.ArgumentParser(prog="python -m server.xllama", description=__doc__, allow_abbrev=False)
    for name in ("--model", "--alias", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--ctx-size", "--parallel", "--threads", "--threads-batch", "--threads-http", "--cache-ram"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--log-verbosity", type=int, default=2)
    parser.add_argument("--metrics", action="store_true")
    return parser


def start(arguments: argparse.Namespace) -> object:
    """The running server; it stops when the object is deleted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = [arguments.alias]
    params.hostnames = [arguments.host]
    params.port = 1  # of no meaning for a Unix socket, but 0 would ask for a TCP port
    params.n_ctx = arguments.ctx_size
    params.n_parallel = arguments.parallel
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads_batch
    params.n_threads_http = arguments.threads_http
    params.cache_ram_mib = arguments.cache_ram
    params.verbosity = arguments.log_verbosity
    params.endpoint_metrics = arguments.metrics
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
