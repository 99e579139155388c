"""Extractors of the benchmarks' own: they come by entry point, as a third party's would."""

from __future__ import annotations

import os
from pathlib import Path

from bench.servers import ROOT
from tessera.extractors.base import Extractor


def install(folder: Path, extractor: type[Extractor]) -> dict[str, str]:
    """Make a distribution in `folder` that registers `extractor`; return the environment that finds it."""
    about = folder / "bench-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bench\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[tessera.extractors]\n{extractor.name} = {extractor.__module__}:{extractor.__name__}\n"
    )
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
