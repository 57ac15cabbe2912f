"""Which of the suite's processes runs which tests, see `make test`."""

from xdist.scheduler import LoadFileScheduling

# Files whose tests take `ray_session`. Another Ray would cost 12 s of processor time to start and 4 % of a processor
# for as long as it lives.
ON_ONE_RAY = {
    "tests/datasets/test_ray_dataset.py",
    "tests/faults/test_kill.py",
    "tests/faults/test_object_store_kills.py",
    "tests/faults/test_tries.py",
    "tests/jobs/test_signals.py",
    "tests/vllm/test_ray_llm.py",
}


class FilesScheduling(LoadFileScheduling):
    """Whole files go to a process, and those that use the Ray of `ray_session` to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests on one Ray" if file in ON_ONE_RAY else file
