"""Run every benchmark, or those named: ``python -m bench [p1 …]``."""

from __future__ import annotations

import argparse
import os
import platform

from bench import models, p1_create_namespace, p11_get_namespace, p12_start

BENCHMARKS = {
    "p1": p1_create_namespace.main,
    "p11": p11_get_namespace.main,
    "p12": p12_start.main,
    "models": models.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which (default: all)")
    names = parser.parse_args().names or list(BENCHMARKS)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
