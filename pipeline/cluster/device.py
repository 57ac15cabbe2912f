"""Where a worker's model runs, and how many GPUs Ray is asked for."""

import math
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.cluster.session import cluster_gpus
from pipeline.errors import UserError


@dataclass(frozen=True)
class Placement:
    """What each worker gets and uses."""

    device: str  # "cpu", "cuda", or "auto": CUDA where the worker sees it
    gpus_per_worker: float

    @property
    def workers(self) -> int | None:
        """Workers that the cluster's GPUs have room for; None when they need no GPU."""
        gpus = self.gpus_per_worker
        if not gpus:
            return None
        on_one = math.floor(1 / gpus + 1e-9) if gpus < 1 else 0  # Ray splits no worker's share over two GPUs
        return max(1, sum(int(count) * on_one if gpus < 1 else int(count / gpus) for count in cluster_gpus()))

    def note(self, device: str | None) -> str | None:
        """What to tell the user when a worker was given a GPU and computed on `device`; None where that is as asked."""
        if self.device != "auto" or device != "cpu":
            return None
        return (
            "workers that were given a GPU compute on the CPU, because their torch sees no CUDA; install a torch "
            "built for CUDA and its driver, or pass --device cpu"
        )


def place(device: str, gpus_per_worker: float | None, address: str | None, say: Callable[[str], None]) -> Placement:
    """Settle `--device` and `--gpus-per-worker` on the cluster that is connected.

    Args:
        device: "auto", "cuda" or "cpu".
        gpus_per_worker: None: 1 where the cluster has GPUs, unless the device is the CPU.
        address: of the cluster; None for a private one, which never grows.
        say: takes one line for the user.

    Raises:
        UserError: GPUs that no node has.
    """
    largest = max(cluster_gpus(), default=0.0)
    if gpus_per_worker is None:
        if device == "cuda" and not largest:
            raise UserError(
                "--device cuda: the cluster has no GPU; start Ray with --num-gpus, or pass --gpus-per-worker: "
                "1 where the cluster is yet to grow one, 0 to use CUDA without Ray counting its devices"
            )
        gpus_per_worker = float(device != "cpu" and largest > 0)
    if gpus_per_worker > largest:
        message = f"--gpus-per-worker {gpus_per_worker:g}: no node of the cluster has so many; the most is {largest:g}"
        if address is None:
            raise UserError(message)
        say(f"{message}; waiting until the cluster has grown one")
    return Placement("cpu" if device == "auto" and not gpus_per_worker else device, gpus_per_worker)


def worker_device(choice: str) -> torch.device:
    """The device of this worker's model.

    Raises:
        UserError: "cuda" where this worker sees none.
    """
    sees_cuda = choice != "cpu" and torch.cuda.is_available()
    if choice == "cuda" and not sees_cuda:
        why = "shows it no device" if torch.version.cuda else "is a build without it"
        raise UserError(
            f"--device cuda: a worker on {socket.gethostname()} sees no CUDA: its torch {torch.__version__} {why}; "
            "mend that, or pass --device auto or cpu"
        )
    return torch.device("cuda" if sees_cuda else "cpu")
