"""What the runner on a Ray cluster promises: the port's promises, bounds, and errors that name the cause.

Functions are Python's own: the tests are not shipped to the cluster.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version

import pytest

from tessera.adapters.ray import RayRunner
from tessera.adapters.ray_worker import Worker
from tessera.errors import ClusterError
from tessera.ports import Compute, Failed
from tests.ray_cluster import RayCluster, other_version

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayRunner]:
    runner = RayRunner([tmp_path_factory.mktemp("blobs")])
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def compute(ray_cluster: RayCluster) -> Compute:
    return Compute(ray_cluster.url, ray_cluster.token, pool="contract", max_workers=2)


def test_values_and_errors_come_back_under_their_numbers(runner: RayRunner, compute: Compute) -> None:
    found = dict(runner.map(math.factorial, [3, 4, 5, -1], timeout_s=60, compute=compute))
    failed = found.pop(3)
    assert found == {0: 6, 1: 24, 2: 120}
    assert isinstance(failed, Failed)
    assert failed.message.startswith("ValueError: ")
    assert not failed.crashed
    assert list(runner.map(math.factorial, [], timeout_s=60, compute=compute)) == []
    assert "ray" not in sys.modules, "the server's own process never imports Ray"


def test_a_crash_costs_one_item_and_time_runs_out_for_one_alone(runner: RayRunner, compute: Compute) -> None:
    (crashed,) = dict(runner.map(os._exit, [3], timeout_s=60, compute=compute)).values()
    assert isinstance(crashed, Failed)
    assert (crashed.kind, crashed.crashed, crashed.retryable) == ("ours", True, True)
    found = dict(runner.map(time.sleep, [0.0, 60.0, 0.1], timeout_s=2, compute=compute))
    late = found.pop(1)
    assert isinstance(late, Failed)
    assert (late.kind, late.crashed, late.retryable) == ("limit", True, False)
    assert found == {0: None, 2: None}


def test_an_item_that_goes_again_is_another(
    runner: RayRunner, compute: Compute, ray_cluster: RayCluster
) -> None:
    asked = []

    def again(item: int, run: int) -> int:
        asked.append((item, run))
        return 0

    # The second run sleeps no longer; the first one is killed with its worker.
    threading.Thread(target=_kill_the_sleeper, args=(ray_cluster,), daemon=True).start()
    found = dict(runner.map(time.sleep, [30], timeout_s=100, compute=compute, again=again))
    assert found == {0: None}
    assert asked == [(30, 1)]


def _kill_the_sleeper(cluster: RayCluster) -> None:
    time.sleep(2)
    for pid, command in cluster.processes().items():
        if command.startswith("ray::Worker.run"):
            os.kill(pid, signal.SIGKILL)


def test_workers_stay_within_their_bounds(compute: Compute, ray_cluster: RayCluster) -> None:
    bounded = replace(compute, pool="bounded", min_workers=1)
    fixed = replace(compute, pool="fixed", min_workers=1, autoscaling=False)
    # Of its own: the minimum of each stays until the runner is closed.
    runner = RayRunner([])
    for asked in (bounded, fixed):
        assert len(list(runner.map(time.sleep, [0.5] * 10, timeout_s=60, compute=asked))) == 10
    runner.close()
    names = [actor["name"].split("-")[1] for actor in ray_cluster.ask()["actors"]]
    assert (names.count("bounded"), names.count("fixed")) == (2, 1)


@pytest.mark.parametrize("case", ["wrong token", "no token", "unreachable", "no GPU"])
def test_what_cannot_work_is_told_within_15_s(
    runner: RayRunner, compute: Compute, ray_cluster: RayCluster, case: str
) -> None:
    asked, says = {
        "wrong token": (replace(compute, token="b" * 32), "refused the token"),
        "no token": (replace(compute, token=None), "wants a token"),
        "unreachable": (Compute("ray://127.0.0.1:9"), "cannot be reached"),
        "no GPU": (
            replace(compute, pool="gpu", gpu_type="A100", gpus_per_worker=1),
            "1 GPU(s) of type A100 a worker",
        ),
    }[case]
    message = refused(runner, asked)
    assert says in message
    assert ray_cluster.url in message or case == "unreachable"
    assert ray_cluster.token not in message


@pytest.mark.parametrize(("ray", "python"), [("2.9.3", None), (None, "3.9.1")])
def test_other_versions_are_told_within_15_s(runner: RayRunner, ray: str | None, python: str | None) -> None:
    mine = ".".join(map(str, sys.version_info[:3]))
    with other_version(ray or version("ray"), python or mine) as url:
        message = refused(runner, Compute(url))
    assert "runs other versions than this server" in message
    assert (ray or python or "") in message


def refused(runner: RayRunner, compute: Compute) -> str:
    begun = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        list(runner.map(math.factorial, [1], timeout_s=60, compute=compute))
    assert time.monotonic() - begun < 15
    return caught.value.message


def test_a_directory_that_the_cluster_does_not_see_is_refused(compute: Compute) -> None:
    runner = RayRunner([])
    runner._probes = {"/no/such/place/.seen-by-ray": "x"}
    try:
        with pytest.raises(ClusterError, match="does not see the server's directory /no/such/place"):
            list(runner.map(math.factorial, [1], timeout_s=60, compute=compute))
    finally:
        runner.close()


def test_a_package_that_a_node_lacks_is_named() -> None:
    _pid, problems = Worker().check({}, ["numpy", "no_such_package"])
    assert len(problems) == 1
    assert "no_such_package" in problems[0]


def test_stopping_ends_the_iteration(runner: RayRunner, compute: Compute) -> None:
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    begun = time.monotonic()
    assert list(runner.map(time.sleep, [60], timeout_s=100, compute=compute, stop=stop)) == []
    assert time.monotonic() - begun < 20
