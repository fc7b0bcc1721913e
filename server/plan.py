"""Decides what is served: which files of which run, by which commands. Nothing is started here."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelstore import Artifact, Base, Run, Store, UserError
from modelstore.files import sha256
from modelstore.signatures import signer
from server.engine import EngineKind, EngineOptions, EnginePlan, Weights
from server.validation import Limits

BACKLOG = 512
UNREAD_S = 60.0  # what a client does not take for so long is dropped with its connection


@dataclass(frozen=True)
class ServePlan:
    """The run, and the engines for it and its base."""

    run: Run
    base: Base
    engines: tuple[EnginePlan, ...]
    limits: Limits


@dataclass(frozen=True)
class Wish:
    """What the operator asked for, the same for every run that is served one after the other."""

    engine: EngineKind
    options: EngineOptions
    weights: str | None = None
    quantization: str | None = None
    allowed_signers: Path | None = None


def plan_serving(store: Store, ref: str, wish: Wish) -> ServePlan:
    """Raises UserError for a run, base or file that is missing, whose hash is not the manifest's, or that lacks the
    signature that is wished for."""
    run = store.run(ref)
    base = store.base(str(run.manifest.base.get("id")))
    if wish.allowed_signers:
        for each in (run, base):
            signer(each, wish.allowed_signers)
    weights = find_weights(run, base, wish)
    _check(list(dict.fromkeys((*run.manifest.artifacts, *weights.artifacts))))
    engines = wish.engine.plans(run, base, weights, wish.options)
    return ServePlan(run, base, engines, Limits(wish.options.context_tokens, wish.options.slots))


def find_weights(run: Run, base: Base, wish: Wish) -> Weights:
    """The files of run and base that the engine reads. Raises UserError that says what there is instead."""
    kind = wish.weights or wish.engine.weights[0]
    if kind not in wish.engine.weights:
        raise UserError(f"--weights {kind} is nothing that {wish.engine.name} serves: {_WHY[wish.engine.name, kind]}")
    if kind == "gguf":
        tuned = run.artifact("gguf", wish.quantization or run.manifest.serve.get("quantization"))
        original = base.artifact("gguf", tuned.quantization)
        return Weights(kind, tuned.path, original.path, (tuned, original))
    if wish.quantization:
        raise UserError(f"--quantization chooses among GGUF files; {wish.engine.name} serves {kind} weights here.")
    used = [
        *(a for a in run.manifest.artifacts if a.kind == kind),
        *(a for a in base.manifest.artifacts if a.kind == "hf"),
    ]
    return Weights(kind, run.folder(kind), base.folder("hf"), tuple(used))


_WHY = {
    ("llamacpp", "merged"): "it reads GGUF files. Take --engine vllm or leave --weights out.",
    ("llamacpp", "adapter"): "after a change of adapter it reuses cached state of the other one and answers wrongly.",
}


def _check(artifacts: Sequence[Artifact]) -> None:
    """Raise UserError at the first file that is not what its manifest states."""
    for artifact in artifacts:
        if not artifact.path.is_file() or artifact.path.stat().st_size != artifact.bytes:
            raise UserError(f"{artifact.path} is missing or cut off. Restore the run or train again.")
    for artifact, found in zip(artifacts, sha256(each.path for each in artifacts), strict=True):
        if found != artifact.sha256:
            raise UserError(
                f"{artifact.path} does not have the SHA-256 that its manifest states: it was damaged or changed after "
                "publishing. Restore the run or train again."
            )


def listen(host: str, port: int) -> socket.socket:
    """The public socket, bound before any model is loaded. Raises UserError when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # the connections inherit it
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Stop what listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it) or choose another: make serve PORT={port + 1}"
        ) from None
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; the connections inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_S))
    listener.listen(BACKLOG)
    return listener
