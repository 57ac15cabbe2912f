"""How the shards are spread over the cluster."""

import pytest

from pipeline.prune.stages import DECODE_CPUS, WRITE_CPUS, worker_cpus


@pytest.mark.parametrize("cpus", [2, 3, 4, 8, 16, 96])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 20])
def test_workers_leave_room_for_decoding_and_writing(workers, cpus):
    share = worker_cpus(workers, cpus)
    assert 0 < share <= 1
    assert workers * share + DECODE_CPUS + WRITE_CPUS <= cpus + 1e-9
    assert share not in (DECODE_CPUS, WRITE_CPUS)
    if workers < cpus:
        assert share == 1


def test_one_cpu_is_enough():
    assert worker_cpus(1, 1) + DECODE_CPUS <= 1
