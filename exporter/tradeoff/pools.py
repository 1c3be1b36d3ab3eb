"""Where the processes of trials run: on this machine, or on a Ray cluster."""

import logging
import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from exporter.errors import ClusterError, RecipeError
from exporter.formats.extras import Extra
from exporter.isolation import environment_of_children
from exporter.tradeoff.trial import Trial

RAY = Extra("ray", ("ray",))

_POLL = 0.05
_PATIENCE = 10.0
"""Seconds to wait for an answer."""


class Pool(Protocol):
    """Runs trials beside each other.

    Attributes:
        capacity: How many may run at a time.
    """

    capacity: int

    def start(self, trial: Trial) -> None:
        """Starts a trial."""

    def wait(self) -> tuple[Trial, str | None]:
        """Waits until one of the trials that were started ends; returns why it failed, or None."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Ends the trials that still run."""


class Processes:
    """A pool of processes on this machine."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._running: dict[subprocess.Popen[bytes], Trial] = {}

    def start(self, trial: Trial) -> None:
        """Starts the process of a trial."""
        self._running[_process(trial)] = trial

    def wait(self) -> tuple[Trial, str | None]:
        """Waits until a process ends."""
        while True:
            for process in [p for p in self._running if p.poll() is not None]:
                trial = self._running.pop(process)
                return trial, trial.failure(process.returncode)
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes that still run; their folders stay as they were."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()


def _process(trial: Trial) -> subprocess.Popen[bytes]:
    command = trial.command()
    with trial.words.open("wb") as words:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env=environment_of_children(),
        )


class RayCluster:
    """A pool of tasks on a Ray cluster, whose machines share the folder of the sweep.

    Ray starts the task of a worker that died again, and the run in it goes on where files tell that
    it was: a trial that had been finished is not repeated.
    """

    def __init__(self, address: str, capacity: int) -> None:
        """Connects to a cluster, ``auto`` being the one of this machine.

        Raises:
            RecipeError: If the extra is not installed, or there is no cluster at the address.
        """
        RAY.require("--ray")
        import ray

        told = (
            "--ray must be auto or the address HOST:PORT of a Ray cluster that runs. Received: "
            f"{address!r}"
        )
        if address != "auto":
            _check_listens(address, told)

        self._ray: Any = ray
        self.capacity = capacity
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray's errors share no public base.
            raise RecipeError(f"{told}: {error}") from error
        self._task = ray.remote(max_retries=-1, num_cpus=1)(_carry_out)
        self._running: dict[Any, Trial] = {}

    def start(self, trial: Trial) -> None:
        """Hands a trial to the cluster."""
        self._running[self._task.remote(trial, str(Path.cwd()))] = trial

    def wait(self) -> tuple[Trial, str | None]:
        """Waits until a task ends.

        Raises:
            ClusterError: If the cluster is gone.
        """
        (done,), _ = self._ray.wait(list(self._running), num_returns=1)
        trial = self._running.pop(done)
        try:
            failure: str | None = self._ray.get(done)
        except Exception as error:  # As above.
            raise ClusterError(
                f"The Ray cluster lost the trial of {trial.goal}: {error}. Sweep again: "
                "finished trials are kept."
            ) from error
        return trial, failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels the tasks that still run, and disconnects."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _check_listens(address: str, told: str) -> None:
    """Raises a RecipeError if nothing listens at an address; Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise RecipeError(f"{told}.")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise RecipeError(f"{told}, where nothing listens: {error}.") from error


def _carry_out(trial: Trial, folder: str) -> str | None:
    """Runs in a worker of the cluster, in the folder that the sweep was started in."""
    os.chdir(folder)
    if trial.finished:  # By a worker that died before it could say so.
        return None
    return trial.failure(_process(trial).wait())
