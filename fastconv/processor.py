"""The processor of this machine."""

import platform
from pathlib import Path

__all__ = ["cpu_model", "cpu_name"]

#: The lines of /proc/cpuinfo that tell apart processors of the same name, on x86-64 and on Arm.
_NUMBERS = ("cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")


def _facts() -> dict[str, str]:
    """Return the lines of /proc/cpuinfo about the first core. Empty on other systems than Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {}
    first = cpuinfo.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_name() -> str:
    """Return the processor's name as the system reports it."""
    return _facts().get("model name") or platform.processor() or platform.machine()


def cpu_model() -> str:
    """Return the processor's name with the numbers of its model, because virtual machines may report a short name.

    Example:
        >>> cpu_model().startswith(cpu_name())
        True
    """
    facts = _facts()
    numbers = ", ".join(f"{name} {facts[name]}" for name in _NUMBERS if name in facts)
    return f"{cpu_name()} ({numbers})" if numbers else cpu_name()
