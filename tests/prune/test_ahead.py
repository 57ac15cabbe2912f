"""Batches worked on ahead: in order, with errors told where they belong, and everything down in one copy."""

import threading
import time

import pytest
import torch

from benchmarks.counted_device import Counted, counted_call
from pipeline.prune.ahead import IN_FLIGHT, Download, Laps, worked_ahead

CPU, ELSEWHERE = torch.device("cpu"), torch.device("privateuseone", 0)


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_results_come_in_the_order_of_the_batches(device):
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 * (number == 0))
        return number

    got = worked_ahead(range(7), slow_at_first, lambda number: number + 10, slow_at_first, device)
    assert list(got) == [number + 10 for number in range(7)]
    assert list(worked_ahead([], slow_at_first, slow_at_first, slow_at_first, device)) == []


def test_the_next_batch_is_prepared_while_one_computes_and_results_are_finished_beside_it():
    prepared, launched, finished = threading.Event(), threading.Event(), threading.Event()
    threads = {}

    def prepare(number: int) -> int:
        threads["prepare"] = threading.get_ident()
        if number == 1:
            prepared.set()
        return number

    def launch(number: int) -> int:
        threads["launch"] = threading.get_ident()
        if number == 0:
            assert prepared.wait(10), "nobody prepared the next batch meanwhile"
        if number == 1:
            launched.set()
        return number

    def finish(number: int) -> int:
        threads["finish"] = threading.get_ident()
        if number == 0:
            assert launched.wait(10), "the next batch was not launched before this one was finished"
            finished.set()
        return number

    assert list(worked_ahead([0, 1, 2], prepare, launch, finish, ELSEWHERE)) == [0, 1, 2]
    assert finished.is_set()
    assert threads["launch"] == threading.get_ident()
    assert len(set(threads.values())) == 3


def test_no_more_batches_are_in_flight_than_memory_was_planned_for():
    unfinished: set[int] = set()
    seen = []

    def launch(number: int) -> int:
        unfinished.add(number)
        seen.append(len(unfinished))
        return number

    def finish(number: int) -> int:
        time.sleep(0.01)
        unfinished.discard(number)
        return number

    list(worked_ahead(range(8), lambda number: number, launch, finish, ELSEWHERE))
    assert max(seen) == IN_FLIGHT


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
@pytest.mark.parametrize("where", ["prepare", "launch", "finish"])
def test_what_a_thread_raises_is_raised_here(device, where):
    def step(name: str):
        def work(number: int) -> int:
            if name == where and number == 2:
                raise torch.OutOfMemoryError(f"{name} of {number}")
            return number

        return work

    with pytest.raises(torch.OutOfMemoryError, match=f"{where} of 2"):
        list(worked_ahead(range(5), step("prepare"), step("launch"), step("finish"), device))


def test_tensors_of_all_widths_come_down_in_one_copy():
    counted = Counted()
    tensors = [
        torch.tensor([True, False, True]),
        torch.randn(3, 5).bfloat16(),
        torch.arange(7),
        torch.randn(2, 0),
        torch.randn(4, 3).T,
        torch.randn(3, dtype=torch.float64),
        torch.tensor(1.5),
    ]
    with counted.device() as device:
        moved = [tensor.to(device) for tensor in tensors]
        got: list[torch.Tensor] = []
        found = counted_call(lambda: got.extend(Download(moved, device).wait()), counted)
    assert found["downloads"] == found["waits"] == 1
    for one, other in zip(got, tensors, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)


def test_on_the_cpu_nothing_is_copied():
    tensors = [torch.rand(3), torch.rand(2)]
    assert all(one is other for one, other in zip(Download(tensors, CPU).wait(), tensors, strict=True))


def test_laps_add_up():
    laps, seconds = Laps(CPU), {"encode": 1.0}
    time.sleep(0.02)
    laps.lap("encode")
    laps.lap("score")
    laps.add_to(seconds)
    assert seconds["encode"] >= 1.02
    assert 0 <= seconds["score"] < 0.02
