"""The suite's own promises: tests on Ray are marked, others can't start it, and what is costly is made once."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import torch

from pipeline.cluster import stream
from tests.processes import ON_ONE_RAY


def test_a_test_without_the_marker_cannot_start_ray():
    with pytest.raises(pytest.fail.Exception, match="carry the marker ray"):
        ray.init(num_cpus=1)


def test_tests_that_take_the_session_are_marked(request):
    """By fixtures of fixtures too; among all that are collected here, so the whole suite when it runs whole."""
    items = request.session.items
    assert all(item.get_closest_marker("ray") for item in items if "ray_session" in item.fixturenames)
    assert request.node.get_closest_marker("ray") is None


def test_tests_that_take_the_session_run_in_one_process(request):
    taking = {
        item.nodeid.split("::")[0]
        for item in request.session.items
        if "ray_session" in item.fixturenames and not item.get_closest_marker("slow")
    }
    assert taking <= ON_ONE_RAY
    assert all((request.config.rootpath / file).exists() for file in ON_ONE_RAY)


def test_processes_that_tests_start_collect_garbage_as_seldom_as_this_one():
    program = "import gc; print(gc.get_threshold())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(gc.get_threshold())
    assert gc.get_threshold()[0] >= 50_000


def test_what_is_made_once_is_made_by_the_first_and_waited_for(made_once, request):
    fillings: list[Path] = []

    def fill(folder: Path) -> None:
        fillings.append(folder)
        folder.mkdir()
        time.sleep(0.2)
        (folder / "whole").touch()

    def get() -> None:
        seen.append((made_once(name, fill) / "whole").exists())

    name, seen = f"once-{request.node.name}", []
    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (seen, len(fillings)) == ([True] * 4, 1)


def test_what_could_not_be_made_is_not_taken_for_whole(made_once, request):
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise OSError("no room")

    name = f"broken-{request.node.name}"
    with pytest.raises(OSError, match="no room"):
        made_once(name, fail)
    with pytest.raises(AssertionError, match="another process failed to make"):
        made_once(name, fail)


def test_jobs_without_ray_leave_no_trace_of_it(without_ray):
    """Inside the block the project's calls go nowhere else; after it, and for Ray's own modules, all is as before."""
    before = ray.remote, stream.ray, torch.get_num_threads()
    with without_ray():
        assert stream.ray is not ray
        assert ray.remote is before[0]
        torch.set_num_threads(before[2] + 1)
        assert stream.run_on_worker(max, 2, 3) == 3
    assert (ray.remote, stream.ray, torch.get_num_threads()) == before
