"""Decides what is served: which files of which run, by which commands. Nothing is started here."""

from __future__ import annotations

import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelstore import Artifact, Manifest, Run, Store, UserError
from server.engine import EngineOptions, llamacpp_argv, llamacpp_environment, llamacpp_program
from server.validation import Limits


@dataclass(frozen=True)
class EnginePlan:
    """One engine process. `names` are what a request may call its model."""

    role: str
    names: tuple[str, ...]
    port: int
    api_key: str
    argv: list[str]
    environment: dict[str, str]
    chat_template_sha256: str = ""

    @property
    def url(self) -> str:
        """Where the engine listens, on this machine only."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class ServePlan:
    """The run, and one engine each for it and its base."""

    run: Run
    engines: tuple[EnginePlan, ...]
    limits: Limits


def plan_serving(store: Store, ref: str, quantization: str | None, options: EngineOptions) -> ServePlan:
    """Raises UserError for a run, base or file that is missing, or whose hash is not the manifest's."""
    run = store.run(ref)
    wanted = quantization or run.manifest.serve.get("quantization")
    tuned = run.artifact("gguf", wanted)
    base = store.base(str(run.manifest.base.get("id")))
    original = base.artifact("gguf", tuned.quantization)
    with ThreadPoolExecutor() as pool:
        list(pool.map(_check, (*run.manifest.artifacts, original)))  # of a base, which grows, only what is served
    return ServePlan(
        run,
        (
            _engine("tuned", (run.id, "tuned"), tuned, run.manifest, options),
            _engine("base", ("base", base.id), original, base.manifest, options),
        ),
        Limits(options.context_tokens, options.slots),
    )


def _engine(
    role: str, names: tuple[str, ...], artifact: Artifact, manifest: Manifest, options: EngineOptions
) -> EnginePlan:
    port, key = _free_port(), secrets.token_urlsafe(24)
    argv = llamacpp_argv(llamacpp_program(), artifact.path, names[0], port, options)
    environment = llamacpp_environment(key, os.environ)
    return EnginePlan(role, names, port, key, argv, environment, manifest.chat_template_sha256)


def _check(artifact: Artifact) -> None:
    from modelstore.files import sha256

    if not artifact.path.is_file() or artifact.path.stat().st_size != artifact.bytes:
        raise UserError(f"{artifact.path} is missing or cut off. Restore the run or train again.")
    if sha256(artifact.path) != artifact.sha256:
        raise UserError(
            f"{artifact.path} does not have the SHA-256 that its manifest states: it was damaged or changed after "
            "publishing. Restore the run or train again."
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listen(host: str, port: int) -> socket.socket:
    """The public socket, bound before any model is loaded. Raises UserError when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Stop what listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it) or choose another: make serve PORT={port + 1}"
        ) from None
    listener.listen(1024)
    return listener
