"""The front door: flags -> config -> devices -> the job named by `config.job`.

python -m jaxgen.main --config=FILE[:variant] [--config.field=value ...] --workdir=DIR

For example: python -m jaxgen.main --config=configs/finetune.py:hyenadna_smoke,table --config.data.path=FOLDER --workdir=runs/mine
"""

import ctypes
import errno
import glob
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from jaxgen.errors import InputError, nearest

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOTDIR)

# glibc's malloc.h: no mapping of its own for a large block, the end of the heap is never handed back, one heap for all threads.
_KEEP_ALL = ((-4, 0), (-1, 2**31 - 1), (-8, 1))  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def available_jobs() -> dict[str, str]:
    """Job -> first line of its docstring."""
    import ast
    from pathlib import Path

    import jaxgen.jobs

    found = {}
    for module in pkgutil.iter_modules(jaxgen.jobs.__path__):
        source = (Path(jaxgen.jobs.__path__[0]) / f"{module.name}.py").read_text() if not module.ispkg else ""
        if "\ndef run(" in source:
            found[module.name] = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]
    return found


def help_text() -> str:
    from jaxgen.config import available_configs

    lines = [(__doc__ or "").strip(), "", "Configs:"]
    lines += [f"  {name:32s} {what}" for name, what in available_configs().items()]
    lines += ["", "Jobs (set by a config, or --config.job=NAME):"]
    lines += [f"  {name:32s} {what}" for name, what in available_jobs().items()]
    lines += ["", "`python -m jaxgen.main --models` lists every MODEL, `--tasks` every TASK."]
    lines += ["Every field and its meaning: configs/common.py. Exit codes: 0 done, 1 a check failed, 2 wrong input."]
    return "\n".join(lines)


def names(kind: str) -> list[str]:
    """What MODEL or TASK of a config can be, for `--models` and `--tasks`."""
    if kind == "--models":
        from jaxgen.models.registry import model_names

        return model_names()
    from jaxgen.data import tasks

    return tasks.names()


def parse_flags(argv: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Command line -> (config spec, overrides).

    Raises:
      InputError: an unknown flag, or one without its value.
    """
    spec, overrides, arguments = "", [], list(argv)
    while arguments:
        flag, equals, value = arguments.pop(0).partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("-") or not (name in ("config", "workdir") or name.startswith("config.")):
            raise InputError(f"unknown argument {flag!r}{nearest(name, ['config', 'workdir', 'help'])} (see --help)")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise InputError(f"{flag} needs a value: {flag}=...")
            value = arguments.pop(0)
        if name == "config":
            spec = value
        else:
            overrides.append((name.removeprefix("config."), value))
    if not spec:
        raise InputError("--config=FILE is missing, e.g. --config=configs/quickstart.py (see --help)")
    return spec, overrides


def keep_freed_memory() -> None:
    """Where only the CPU computes, keep freed memory in the process (glibc only; elsewhere nothing happens).

    XLA's CPU client allocates the buffers of every step anew. glibc hands such large ones back to the system at once, so that every page is
    faulted in and zeroed again: a quarter of the CPU time of a small step. The process stays at the size of its largest step.
    """
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and (asked == "cpu" or (not asked and not any(map(glob.glob, _ACCELERATORS)))):
        for option, value in _KEEP_ALL:
            mallopt(option, value)


def start_devices() -> None:
    """Join the other processes of the run, if there are any: our launcher's variables, SLURM, or (JAXGEN_DISTRIBUTED=1) a TPU pod."""
    import jax

    env = os.environ
    if env.get("JAXGEN_COORDINATOR"):
        if env.get("JAX_PLATFORMS", "").startswith("cpu"):
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(env["JAXGEN_COORDINATOR"], int(env["JAXGEN_PROCESS_COUNT"]), int(env["JAXGEN_PROCESS_ID"]))
    elif env.get("JAXGEN_DISTRIBUTED") == "1" or int(env.get("SLURM_NTASKS", 1)) > 1 or "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()  # finds the others by itself on SLURM and Cloud TPU


def start_compile_cache(folder: str) -> None:
    """Compiled programs are kept between runs: the second start of the same config does not compile."""
    import jax

    if not folder:
        return
    if folder == "auto":
        folder = os.path.join(os.environ.get("JAXGEN_CACHE") or os.path.expanduser("~/.cache/jaxgen"), "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def main(argv: Sequence[str]) -> int:
    """Run one job; returns the exit code."""
    if not argv or {"-h", "--help", "help"} & set(argv):
        return _show(help_text())
    if argv[0] in ("--models", "--tasks"):
        return _show("\n".join(names(argv[0])))
    from jaxgen.config import load_config

    spec, overrides = parse_flags(argv)
    config = load_config(spec, overrides)
    jobs = available_jobs()
    if config.job not in jobs:
        raise InputError(f"config.job={config.job!r} is not a job{nearest(config.job, jobs)}")
    keep_freed_memory()
    start_devices()
    start_compile_cache(config.compile_cache)
    try:
        return importlib.import_module(f"jaxgen.jobs.{config.job}").run(config) or 0
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        advice = "free space or choose another --workdir, then run the same command again"
        raise InputError(f"{error.filename or config.workdir}: {error.strerror}; {advice}") from error


def _show(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough; nothing may be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _silence_echoes() -> None:
    """A failed save is raised, and reported here; its echoes from the threads of Orbax and TensorStore would print tracebacks around it."""
    for library in ("absl", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report


def entry(argv: Sequence[str] | None = None) -> None:
    """`main`, with wrong input reported as one line and exit code 2."""
    _silence_echoes()
    try:
        code = main(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


if __name__ == "__main__":
    entry()
