"""``tessera models``: which models there are, and installing one."""

from __future__ import annotations

import argparse
import os
from typing import Any

from tessera.cli.options import load
from tessera.cli.terminal import EXIT_FAILED, EXIT_OK, EXIT_USAGE, fail, note, print_table


def add(commands: Any) -> None:
    """Add the command ``models``."""
    models = commands.add_parser(
        "models",
        help="list and install models",
        description="Show which models there are and which are installed; install one.",
    )
    _add_model_commands(models)


def _add_model_commands(parser: argparse.ArgumentParser) -> None:
    _add_place(parser)
    parser.set_defaults(run=_models_list)
    actions = parser.add_subparsers(metavar="ACTION")

    listing = actions.add_parser("list", help="list models; the same as no action")
    _add_place(listing, argparse.SUPPRESS)
    listing.set_defaults(run=_models_list)

    pull = actions.add_parser("pull", help="fetch a model into the models directory and verify it")
    pull.add_argument("model_id", metavar="ID", help="id of the model, as `tessera models` shows it")
    _add_place(pull, argparse.SUPPRESS)
    pull.set_defaults(run=_models_pull)

    bench = actions.add_parser(
        "bench",
        help="measure how fast the installed models run here",
        description="Load each installed model once and print its rate, one by one and several together, as a worker "
        "runs it: one instance, one thread.",
    )
    bench.add_argument("model_id", metavar="ID", nargs="?", help="this model only")
    bench.add_argument("--sound", metavar="FILE", help="speech to measure models of speech with")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    _add_place(bench, argparse.SUPPRESS)
    bench.set_defaults(run=_models_bench)


def _add_place(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--data", metavar="DIR", default=default, help="data directory (tessera-data)")
    parser.add_argument("--models-dir", metavar="DIR", default=default, help="model files (DATA/models)")


def _models_list(options: argparse.Namespace) -> int:
    from tessera.inference import open_models

    settings = load(options).settings
    rows = [("ID", "KIND", "DIMENSIONS", "LICENCE", "SIZE", "INSTALLED", "DESCRIPTION")]
    rows += [
        (
            status.model.model_id,
            status.model.role,
            str(status.model.dimensions or "–"),
            status.model.licence,
            f"{status.model.size_bytes / 1e6:.0f} MB" if status.model.size_bytes else "-",
            status.where or "no",
            status.model.description,
        )
        for status in open_models(settings.models_path, settings.offline).table()
    ]
    print_table(rows)
    return EXIT_OK


def _models_pull(options: argparse.Namespace) -> int:
    from tessera.inference import find, open_models

    settings = load(options).settings
    models = open_models(settings.models_path)
    model = find(options.model_id)
    if model is None:
        known = ", ".join(status.model.model_id for status in models.table())
        return fail(f"There is no model {options.model_id!r}; there are {known}.", EXIT_USAGE)
    os.umask(0o077)
    folder = models.pull(model.model_id, report=note)
    if models.where(model.model_id) == "built in":
        print(f"{model.model_id} is built in; there is nothing to fetch.")
    else:
        print(f"{model.model_id} is installed in {folder}.")
    return EXIT_OK


def _models_bench(options: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from tessera import model_rates
    from tessera.inference import find, open_models

    settings = load(options).settings
    models = open_models(settings.models_path, True)
    wanted = find(options.model_id) if options.model_id else None
    if options.model_id and wanted is None:
        known = ", ".join(status.model.model_id for status in models.table())
        return fail(f"There is no model {options.model_id!r}; there are {known}.", EXIT_USAGE)
    if wanted is not None and not models.installed(wanted.model_id):
        return fail(
            f"{wanted.model_id} is not installed: tessera models pull {wanted.model_id}.", EXIT_FAILED
        )
    sound = Path(options.sound) if options.sound else None
    if sound is not None and not sound.is_file():
        return fail(f"there is no file {sound}.", EXIT_USAGE)
    os.umask(0o077)
    chosen = [wanted] if wanted else [status.model for status in models.table() if status.installed]
    found = [model_rates.measure(models, model, sound) for model in chosen]
    if options.json:
        print(json.dumps([rate.to_json() for rate in found], indent=2))
        return EXIT_OK
    rows = [("ID", "KIND", "LOADED IN", "ONE BY ONE", "TOGETHER", "UNIT")]
    rows += [
        (
            rate.model_id,
            rate.role,
            f"{rate.load_s:.2f} s",
            "–" if rate.alone is None else f"{rate.alone:.1f}",
            "–" if rate.together is None else f"{rate.together:.1f}",
            rate.unit,
        )
        for rate in found
    ]
    print_table(rows)
    return EXIT_OK
