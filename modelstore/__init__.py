"""The contract between trainer, server and clients: runs on disk, format 1. Standard library only."""

from modelstore.errors import UserError, exit_cleanly
from modelstore.manifest import Artifact, ArtifactSpec, Check, Manifest
from modelstore.store import CHANNELS, Base, Run, Staging, Store, new_run_id

__all__ = [
    "CHANNELS",
    "Artifact",
    "ArtifactSpec",
    "Base",
    "Check",
    "Manifest",
    "Run",
    "Staging",
    "Store",
    "UserError",
    "exit_cleanly",
    "new_run_id",
]
