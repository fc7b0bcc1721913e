"""Starts the pipeline's programs as forks of a process that has imported their libraries, so that a start takes no
seconds. Everything else is as in production: the same code, arguments, environment, files, signals and deaths; but what
Python and the libraries read of the environment when they start, they have read before. For Linux.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

from trainer import children
from trainer.children import bound

CONVERTER = Path(sys.prefix) / "converter"
# Takes the place of a child program: hands its streams over, and its death ends the program that runs in its stead.
CLIENT = """
import ctypes, json, os, socket, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[2]) or sys.exit(1)
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
socket.send_fds(server, [json.dumps([sys.argv[3:], dict(os.environ), os.getcwd()]).encode()], [0, 1, 2])
code = server.recv(16)
sys.exit(int(code) if code else 1)
"""


def client(address: Path, argv: list[str]) -> list[str]:
    """A command that lets the server at `address` run `argv`."""
    return [sys.executable, "-I", "-S", "-c", CLIENT, str(address), str(os.getpid()), *argv]


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a child; its process id. The child never returns."""
    pid = os.fork()
    if pid == 0:
        finish(work)
    return pid


def finish(work: Callable[[], object]) -> NoReturn:
    """Run `work` as a whole program would run, and end this process."""
    code = 1
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))  # a test runner took them
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve(address: Path, prepare: Callable[[], object]) -> int:
    """A process that, after `prepare`, runs Python programs for clients until it is killed; its process id."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen()

    def loop() -> None:
        prepare()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listening.accept()
            fork(lambda connection=connection: _handle(connection))
            connection.close()

    pid = fork(loop)
    listening.close()
    return pid


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Two processes that run the pipeline's child programs; see `through`."""
    servers = [
        serve(folder / "converter.socket", _import_converter),
        serve(folder / "tools.socket", lambda: None),
    ]
    try:
        yield
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def through(folder: Path, argv: list[str]) -> list[str]:
    """The command that lets those processes run `argv`; takes the place of trainer.children.bound. What is not of this
    environment, as the programs of a compiled llama.cpp, starts as ever.
    """
    if argv[0] != sys.executable:
        return bound(argv)
    if argv[1] == str(CONVERTER / "convert_hf_to_gguf.py"):
        return client(folder / "converter.socket", argv)
    return client(folder / "tools.socket", argv) if argv[1] == "-m" else bound(argv)


def taken(folder: Path) -> AbstractContextManager[object]:
    """The trainer of this process starts its programs so."""
    return patch.object(children, "bound", partial(through, folder))


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Both, on Linux. Begin it before torch has computed: threads do not survive a fork."""
    if sys.platform != "linux":
        yield
        return
    with served(folder), taken(folder):
        yield


def _import_converter() -> None:
    """llama.cpp's converter brings a gguf package of its own."""
    sys.path[:0] = [str(CONVERTER), str(CONVERTER / "gguf-py")]
    import conversion.llama  # noqa: F401
    import gguf  # noqa: F401


def _handle(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not said:
        return
    pid = fork(lambda: _program(*json.loads(said), streams))
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:  # the client died, so does the program
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if ended in ready:
        connection.sendall(str(abs(os.waitstatus_to_exitcode(status))).encode())


def _program(argv: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, closefd=False)
    if argv[1] == "-m":
        sys.argv = argv[2:]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv[1:]
        runpy.run_path(argv[1], run_name="__main__")
