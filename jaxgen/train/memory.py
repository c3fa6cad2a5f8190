"""What a compiled step needs, said before it runs."""

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
