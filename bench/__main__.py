"""Run every benchmark, or those named: ``python -m bench [p1 …] [--small]``."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable

from bench import (
    hot_path,
    hour,
    models,
    p1_create_namespace,
    p2_namespaces,
    p3_execute,
    p4_filtered,
    p5_clients,
    p6_ready_vectors,
    p7_search_while_writing,
    p8_hybrid,
    p9_pipeline_overhead,
    p10_video,
    p11_get_namespace,
    p12_start,
    p13_uniform,
    p14_text_ingest,
    plan,
    query_sets,
)

BENCHMARKS: dict[str, Callable[[], None]] = {
    "p1": p1_create_namespace.main,
    "p2": p2_namespaces.main,
    "p3": p3_execute.main,
    "p4": p4_filtered.main,
    "p5": p5_clients.main,
    "p6": p6_ready_vectors.main,
    "p7": p7_search_while_writing.main,
    "p8": p8_hybrid.main,
    "p9": p9_pipeline_overhead.main,
    "p10": p10_video.main,
    "p11": p11_get_namespace.main,
    "p12": p12_start.main,
    "p13": p13_uniform.main,
    "p14": p14_text_ingest.main,
    "hot_path": hot_path.main,
    "hour": hour.main,
    "models": models.main,
    "plan": plan.main,
    "query_sets": query_sets.main,
}
#: The same in a tenth of the size, where the whole takes longer than a few minutes.
SMALL: dict[str, Callable[[], None]] = {
    "p2": lambda: p2_namespaces.main(small=True),
    "p4": lambda: p4_filtered.main(small=True),
    "p5": lambda: p5_clients.main(small=True),
    "hour": lambda: hour.main(small=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which (default: all)")
    parser.add_argument(
        "--small", action="store_true", help="in a few minutes, where there is a smaller form"
    )
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f} before anything was started"
    )
    for name in options.names or list(BENCHMARKS):
        (SMALL.get(name, BENCHMARKS[name]) if options.small else BENCHMARKS[name])()


if __name__ == "__main__":
    main()
