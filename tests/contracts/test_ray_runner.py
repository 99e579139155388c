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

import pytest

from tessera.adapters.ray import RayRunner
from tessera.adapters.ray_worker import Worker
from tessera.errors import ClusterError
from tessera.ports import Compute, Failed
from tests.ray_cluster import RayCluster

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
    assert (crashed.kind, crashed.crashed, crashed.retryable) == ("crash", True, True)
    found = dict(runner.map(time.sleep, [0.0, 60.0, 0.1], timeout_s=2, compute=compute))
    late = found.pop(1)
    assert isinstance(late, Failed)
    assert (late.kind, late.crashed, late.retryable) == ("timeout", True, False)
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
    bounded = replace(compute, pool="bounded", min_workers=1, max_workers=3)
    fixed = replace(compute, pool="fixed", min_workers=1, autoscaling=False)
    runner = RayRunner([])
    # Lowered in the last step: it is not exceeded from then on. Nobody waits for a first worker between the two,
    # for whom others would be given back.
    for asked in (fixed, bounded, replace(bounded, max_workers=2)):
        assert len(list(runner.map(time.sleep, [0.3] * 12, timeout_s=60, compute=asked))) == 12
    actors = ray_cluster.ask()["actors"]
    ever = [actor["name"].split("-")[1] for actor in actors]
    alive = [actor["name"].split("-")[1] for actor in actors if actor["alive"]]
    runner.close()
    assert (ever.count("bounded"), ever.count("fixed")) == (3, 1)
    assert 1 <= alive.count("bounded") <= 2 and alive.count("fixed") == 1


def test_what_cannot_work_is_told_in_seconds(
    runner: RayRunner, compute: Compute, ray_cluster: RayCluster
) -> None:
    for asked, says in (
        (replace(compute, token="b" * 32), "refused the token"),
        (replace(compute, token=None), "wants a token"),
        (replace(compute, pool="gpu", gpu_type="A100", gpus_per_worker=1), "1 GPU(s) of type A100 a worker"),
    ):
        begun = time.monotonic()
        with pytest.raises(ClusterError) as caught:
            list(runner.map(math.factorial, [1], timeout_s=60, compute=asked))
        assert time.monotonic() - begun < 15
        assert says in caught.value.message
        assert ray_cluster.url in caught.value.message
        assert ray_cluster.token not in caught.value.message


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
