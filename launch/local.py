"""Several processes of one run on this machine: the multi-host code path without a cluster.

    python launch/local.py --processes=2 [--devices-per-process=N] [--cpu] [--shares] -- --config=FILE --workdir=DIR

Each process is `python -m jaxgen.main` with the arguments after `--`. On a machine with NVIDIA GPUs process i gets the GPUs
[i*N, (i+1)*N); otherwise, or with `--cpu`, N virtual CPU devices. Lines of output carry the rank. When one process fails the
others are ended and its exit code is returned; SIGTERM and SIGINT go to all of them, so that they can save and exit (a second
signal kills them).

With `--shares` they do not join in one run: each takes its share of the runs of a benchmark, on devices of its own, and goes on when
another one fails. `--dry-run` prints the commands and starts nothing.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

GRACE_SECONDS = 15.0  # for the others, after one process failed: their collectives may never return


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environments(processes: int, devices: int, cpu: bool, shares: bool = False) -> list[dict[str, str]]:
    """The environment of each process: how to find the others or which share it has, and which devices are its own."""
    shared = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if shares:
        shared["JAXGEN_SHARE_COUNT"] = str(processes)
    else:
        shared |= {"JAXGEN_COORDINATOR": f"127.0.0.1:{free_port()}", "JAXGEN_PROCESS_COUNT": str(processes)}
    if cpu:
        count = "--xla_force_host_platform_device_count"
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(count)]
        shared |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*flags, f"{count}={devices}"])}
    found = []
    for rank in range(processes):
        own = {"JAXGEN_SHARE_INDEX" if shares else "JAXGEN_PROCESS_ID": str(rank)}
        if not cpu:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(str(rank * devices + i) for i in range(devices))
        found.append(shared | own)
    return found


def _copy(source: IO[str], target: IO[str], prefix: str, lock: Any) -> None:
    for line in source:
        with lock, contextlib.suppress(BrokenPipeError):  # a reader that has gone must not stop the run
            target.write(prefix + line)
            target.flush()


def run(command: Sequence[str], environments: Sequence[dict[str, str]], grace: float = GRACE_SECONDS, joined: bool = True) -> int:
    """Runs `command` once per environment; returns 0, or the exit code of the first process that failed, which ends the `joined` others."""
    lock, copiers, children = threading.Lock(), [], []
    signals = 0

    def forward(number: int, _: Any) -> None:
        nonlocal signals
        signals += 1
        for child in children:
            if child.poll() is None:
                child.send_signal(number if signals == 1 else signal.SIGKILL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    for rank, environment in enumerate(environments):
        # A session of its own: Ctrl-C reaches the child through `forward` alone, once.
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
        children.append(child)
        for source, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
            copier = threading.Thread(target=_copy, args=(source, target, f"[{rank}] ", lock), daemon=True)
            copier.start()
            copiers.append(copier)

    code, deadline = 0, None
    while any(child.poll() is None for child in children):
        failed = next((rank for rank, child in enumerate(children) if child.poll()), None)
        if joined and failed is not None and deadline is None:
            code = children[failed].returncode
            deadline = time.monotonic() + grace
            with lock:
                print(f"process {failed} ended with exit code {code}; ending the others", file=sys.stderr, flush=True)
            for child in children:
                child.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    for copier in copiers:
        copier.join(timeout=5)
    code = code or next((child.returncode for child in children if child.returncode), 0)
    return 128 - code if code < 0 else code  # as a shell reports a death by signal


def main(argv: Sequence[str]) -> int:
    """Parses the command line and runs the processes."""
    arguments, forwarded = (list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])) if "--" in argv else (list(argv), [])
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], usage="%(prog)s [options] -- --config=FILE --workdir=DIR")
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default 2)")
    parser.add_argument("--devices-per-process", type=int, default=1, help="GPUs or virtual CPU devices of each (default 1)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU although there are GPUs")
    parser.add_argument("--shares", action="store_true", help="processes share the runs of a benchmark instead of joining in one run")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    options = parser.parse_args(arguments)
    if not forwarded:
        parser.error("nothing to run: put the arguments of jaxgen.main after --")
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error("--processes and --devices-per-process must be at least 1")
    cpu = options.cpu or shutil.which("nvidia-smi") is None
    found = environments(options.processes, options.devices_per_process, cpu, options.shares)
    command = [sys.executable, "-m", "jaxgen.main", *forwarded]
    if options.dry_run:
        for environment in found:
            own = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
            print(shlex.join(["env", *own, *command]))
        return 0
    return run(command, found, joined=not options.shares)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
