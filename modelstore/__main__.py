"""`python -m modelstore`: list, promote, roll back, check, sign and delete runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from modelstore import CHANNELS, Base, Run, Store, UserError, exit_cleanly
from modelstore.promotion import Promotion, history, newest_gate
from modelstore.signatures import sign, signer
from modelstore.summary import newest_summary


def main() -> None:
    """Parse and delegate."""
    arguments = _parser().parse_args()
    arguments.act(Store(arguments.store), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modelstore", description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("models"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, act, what in (
        ("runs", _runs, "what is there: id, base, data, loss, accuracy, size, channel"),
        ("promote", _promote, "let `current` name a run, unless its verification or evaluation gate failed"),
        ("rollback", _rollback, "let `current` and `previous` change places"),
        ("history", _history, "who promoted what, when and why"),
        ("check", _check, "compare every file of a run with its manifest"),
        ("sign", _sign, "sign a run and its base model with an SSH key, after comparing every file"),
        ("remove", _remove, "delete a run that no channel names"),
        ("prune", _prune, "delete all runs that no channel names"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(act=act)
        command.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if name in ("promote", "check", "sign", "remove"):
            command.add_argument("run", help="id, unique beginning of an id, or channel")
        if name in ("promote", "rollback"):
            command.add_argument("--why", default="", help="is recorded")
            command.add_argument("--by", default="", help="is recorded; default: the user of this machine")
        if name == "check":
            command.add_argument(
                "--allowed-signers", type=Path, help="the run and its base must be signed by one of them"
            )
        if name == "sign":
            command.add_argument(
                "--key", type=Path, required=True, help="private SSH key, or a public one of ssh-agent"
            )
        if name == "promote":
            command.add_argument("--force", action="store_true", help="also a run that failed; needs --why")
    return parser


def _runs(store: Store, arguments: argparse.Namespace) -> None:
    rows = [_row(store, run) for run in store.runs()]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        print(f"No runs in {store.path} yet. `make train` or `make demo` makes the first.")
    else:
        _print_table(rows)


def _row(store: Store, run: Run) -> dict[str, Any]:
    summary = newest_summary(store, run.id)
    return {
        "id": run.id,
        "base": run.manifest.base.get("id"),
        "data": run.manifest.dataset.get("path"),
        "loss": run.manifest.training.get("final_loss"),
        "accuracy": summary,
        "gate": None if (gate := newest_gate(store.reports(run.id))) is None else gate["passed"],
        "bytes": sum(artifact.bytes for artifact in run.manifest.artifacts),
        "channel": next((name for name in CHANNELS if store.channel(name) == run.id), None),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    shown = [("RUN", "BASE", "DATA", "LOSS", "ACCURACY", "GATE", "SIZE", "CHANNEL")]
    for row in rows:
        loss = "-" if row["loss"] is None else f"{row['loss']:.3f}"
        accuracy = "not evaluated" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        size = f"{row['bytes'] / 1e6:.0f} MB"
        gate = {None: "-", True: "passed", False: "FAILED"}[row["gate"]]
        cells = (row["id"], row["base"] or "-", row["data"] or "-", loss, accuracy, gate, size, row["channel"] or "")
        shown.append(cells)
    widths = [max(len(cells[column]) for cells in shown) for column in range(len(shown[0]))]
    for cells in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def _promote(store: Store, arguments: argparse.Namespace) -> None:
    if arguments.force and not arguments.why:
        raise UserError('--force needs --why "…": the reason is recorded beside the name and the time.')
    run = store.run(arguments.run)
    store.check(run)
    done = store.promote(run.id, by=arguments.by, why=arguments.why, force=arguments.force)
    _say_channels(store, arguments, done)


def _rollback(store: Store, arguments: argparse.Namespace) -> None:
    _say_channels(store, arguments, store.rollback(by=arguments.by, why=arguments.why))


def _say_channels(store: Store, arguments: argparse.Namespace, done: Promotion) -> None:
    facts: dict[str, Any] = {"current": done.run, "previous": store.channel("previous"), "by": done.by}
    if done.against:
        facts["forced against"] = list(done.against)
    elif not arguments.json and newest_gate(store.reports(done.run)) is None:
        facts["note"] = "this run has no evaluation gate, so nothing but its verification was asked"
    _say(arguments, facts)


def _history(store: Store, arguments: argparse.Namespace) -> None:
    promotions = list(history(store.path / "channels"))
    if arguments.json:
        print(json.dumps(promotions))
        return
    for entry in promotions:
        forced = " FORCED" if entry["forced"] else ""
        print(
            f"{entry['time']}  {entry['action']:8}  {entry['run']}  by {entry['by']}{forced}  {entry['why']}".rstrip()
        )


def _check(store: Store, arguments: argparse.Namespace) -> None:
    run = store.run(arguments.run)
    signed = {}
    if arguments.allowed_signers:
        signed = {"signed by": [signer(each, arguments.allowed_signers) for each in (run, _base(store, run))]}
    store.check(run)
    _say(arguments, {"run": run.id, "files": len(run.manifest.artifacts), "damaged": 0} | signed)


def _sign(store: Store, arguments: argparse.Namespace) -> None:
    run = store.run(arguments.run)
    both = (run, _base(store, run))
    for each in both:
        store.check(each)
    _say(arguments, {"signed": [str(sign(each, arguments.key)) for each in both]})


def _base(store: Store, run: Run) -> Base:
    return store.base(str(run.manifest.base.get("id")))


def _remove(store: Store, arguments: argparse.Namespace) -> None:
    run = store.run(arguments.run)
    store.remove(run.id)
    _say(arguments, {"removed": run.id})


def _prune(store: Store, arguments: argparse.Namespace) -> None:
    _say(arguments, {"removed": store.prune()})


def _say(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}: {', '.join(value) or 'nothing' if isinstance(value, list) else value}")


if __name__ == "__main__":
    exit_cleanly(main)
