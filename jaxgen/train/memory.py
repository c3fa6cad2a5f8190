"""What a compiled step needs, said before it runs; and how the host keeps it between steps."""

import ctypes
import glob
import os

import jax

# Dense bf16 peak of one chip, FLOP/s (vendors' data sheets). MFU is left out for other devices.
_PEAK_FLOPS = (
    ("H200", 989e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


# glibc's malloc.h: no mapping of its own for a large block, the end of the heap is never handed back, one heap for all threads.
_KEEP_ALL = ((-4, 0), (-1, 2**31 - 1), (-8, 1))  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


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


def peak_flops() -> float | None:
    """bf16 peak of all devices together, or None where it is not known (CPUs)."""
    kind = jax.devices()[0].device_kind
    for name, flops in _PEAK_FLOPS:
        if name in kind:
            return flops * jax.device_count()
    return None


def available_bytes() -> int | None:
    """Memory that one device offers: its own, or this machine's free memory for CPU devices."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024 // jax.local_device_count()
    except (OSError, KeyError, ValueError):
        return None


def needed_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Memory that a compiled program needs on a device, by XLA's analysis; None where the backend gives none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes - analysis.alias_size_in_bytes


def memory_report(compiled: jax.stages.Compiled) -> str:
    """One line: bytes that a step of the compiled program needs on a device, with a warning when they are not there."""
    need, have = needed_bytes(compiled), available_bytes()
    if need is None:
        return "the backend gives no memory estimate"
    line = f"it needs {_gib(need)} of device memory"
    if have is None:
        return line
    if need > have:
        advice = "lower train.batch_size, raise train.accumulate, set model.remat=full, or shard over mesh.fsdp"
        return f"WARNING: {line}, but only {_gib(have)} are available; {advice}"
    return f"{line} of {_gib(have)} available"


def _gib(n: float) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**27 else f"{n / 2**20:.1f} MiB"
