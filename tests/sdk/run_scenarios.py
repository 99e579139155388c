"""Runs the scenarios of some files and prints one JSON line for each; started by ``conftest.py``."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path


def main(file: str) -> None:
    module = importlib.import_module(Path(file).stem)
    for name, scenario in list(vars(module).items()):
        if not name.startswith("scenario_"):
            continue
        report = ""
        try:
            scenario()
        except Exception:
            report = traceback.format_exc()
        print(json.dumps({"file": file, "name": name, "ok": not report, "report": report}), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
