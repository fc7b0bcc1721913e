"""llama-server without a compiler: the server inside the package xllamacpp, behind llama-server's own flags."""

from __future__ import annotations

import argparse
import os
import signal
import sys


def main() -> None:
    """Serve until SIGTERM."""
    import xllamacpp

    wish = _parser().parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = wish.model
    parameters.model_alias = [wish.alias]
    parameters.hostnames = [wish.host]
    parameters.port = wish.port
    parameters.api_keys = list(filter(None, [os.environ.get("LLAMA_API_KEY")]))
    parameters.n_ctx = wish.ctx_size
    parameters.n_parallel = wish.parallel
    parameters.n_gpu_layers = wish.gpu_layers
    parameters.cpuparams.n_threads = wish.threads
    parameters.cpuparams_batch.n_threads = wish.threads_batch
    parameters.n_threads_http = wish.threads_http
    parameters.verbosity = wish.log_verbosity
    parameters.cache_ram_mib = wish.cache_ram
    parameters.endpoint_metrics = wish.metrics
    parameters.ui = not wish.no_ui
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = xllamacpp.Server(parameters)  # serves from its own threads
    except RuntimeError as error:  # llama.cpp has said why on stderr
        sys.exit(str(error))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.xllama", description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=4096)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("-tb", "--threads-batch", type=int, default=1)
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=0)
    parser.add_argument("--threads-http", type=int, default=-1)
    parser.add_argument("-lv", "--log-verbosity", type=int, default=1)
    parser.add_argument("--cache-ram", type=int, default=0)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-ui", action="store_true")
    return parser


if __name__ == "__main__":
    main()
