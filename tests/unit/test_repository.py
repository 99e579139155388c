"""The repository: what is tracked names no machine and no registry, and the commands it names exist."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

#: What must stand in no tracked file: addresses of registries, paths of the machine it was written on.
#: Each is spelled in two halves, so that this file passes its own test.
FORBIDDEN = [
    re.compile(first + second)
    for first, second in (
        (r"pypi", r"\.org"),
        (r"files\.python", r"hosted"),
        (r"registry\.npm", r"js"),
        (r"deb\.", r"debian"),
        (r"index", r"-url"),
        (r"find", r"-links"),
        (r"(?<![\w.])/ro", r"ot/"),
        (r"(?<![\w.])/wo", r"rk/"),
        (r"(?<![\w.])/ho", r"me/\w"),
        (r"(?<![\w.])/opt/", r"(pypi|wheels)"),
        (r"/Use", r"rs/\w"),
    )
]


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_names_a_registry_or_a_machine() -> None:
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
            if any(pattern.search(line) for pattern in FORBIDDEN):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_every_make_command_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    assert named <= make_targets()


def test_first_screen_of_the_readme_holds_both_commands() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_ci_runs_check_and_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test"]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].split("--hash")[0].strip() for line in path.read_text().splitlines()]
    return {normalized(line.partition("==")[0]): line.partition("==")[2] for line in lines if line}


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras.values() for line in extra)]


@pytest.mark.parametrize("requirement", requirements())
def test_constraints_pin_every_requirement_within_its_bounds(requirement: str) -> None:
    parsed = Requirement(requirement)
    if normalized(parsed.name) == "tessera":
        return
    pinned = pins(ROOT / "constraints.txt").get(normalized(parsed.name))
    assert pinned, f"constraints.txt does not pin {parsed.name}"
    assert parsed.specifier.contains(pinned), f"{pinned} is outside {requirement}"


def test_constraints_pin_what_is_installed() -> None:
    """A distribution that came in without a pin would be another one on the next machine."""
    installed = {normalized(found.metadata["Name"]) for found in distributions()}
    pinned = pins(ROOT / "constraints.txt").keys()
    unpinned = (needed_by("tessera", "media", "dev") & installed) - pinned - {"tessera"}
    assert not unpinned, f"needed, installed and not in constraints.txt: {sorted(unpinned)}"


def needed_by(name: str, *extras: str) -> set[str]:
    """Return the names of all distributions that `name` with `extras` needs on this machine."""
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        try:
            lines = requires(current[0]) or []
        except PackageNotFoundError:  # another platform's, or an extra's that is not installed
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": current[1]}):
                child = normalized(requirement.name)
                waiting += [(child, extra) for extra in ("", *requirement.extras)]
    return {distribution for distribution, _ in seen}
