"""Child program in the server's environment: llama.cpp's own server with a key and two names, without our gateway.

usage: bare_llamacpp.py GGUF PORT KEY SLOTS NAME NAME …
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main(gguf: str, port: str, key: str, slots: str, *names: str) -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.model_alias = list(names)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.api_keys = [key]
    parameters.n_parallel = int(slots)
    parameters.n_ctx = 2048 * int(slots)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.endpoint_metrics = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = xllamacpp.Server(parameters)  # serves from its own threads
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
