"""The command ``tessera``. Heavy modules are imported inside the command that needs them.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 no server reached, 4 the server refused, 5 done
in part, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tessera import __version__
from tessera.cli import (
    backup,
    datasets,
    erase,
    extractors,
    failures,
    ingest,
    keys,
    models,
    plan,
    retriever,
    search,
    secrets,
    settings,
    up,
    watch,
)
from tessera.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, CommandError, fail


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    from tessera.config import ConfigurationError
    from tessera.errors import TesseraError

    try:
        code: int = options.run(options)
    except CommandError as error:
        return fail(error.message, error.code)
    except ConfigurationError as error:
        return fail(error.message, EXIT_USAGE)
    except TesseraError as error:
        return fail(error.message, EXIT_FAILED)
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise  # of the terminal, not of what is sent
        return fail("an argument holds bytes that are no UTF-8, so it cannot be sent.", EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; what is still buffered has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        # A directory that is not ours, a disk that is full: nothing that a traceback would explain better.
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", EXIT_FAILED)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tessera", description="A self-hosted multimodal warehouse: files in, search by meaning out."
    )
    parser.add_argument("--version", action="version", version=f"tessera {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in (
        up,
        ingest,
        plan,
        watch,
        search,
        retriever,
        datasets,
        settings,
        keys,
        models,
        extractors,
        secrets,
        backup,
        erase,
        failures,
    ):
        group.add(commands)
    return parser
