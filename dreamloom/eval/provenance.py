"""Where a figure comes from: machine, commit, versions."""

import json
import os
import platform
import subprocess
from pathlib import Path

import torch

from dreamloom import __version__


def machine(device: torch.device) -> dict[str, object]:
    """What a reader needs to know of the machine that measured."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """The commit of the checkout that the package runs from, with "-dirty" where files differ; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def provenance(device: torch.device) -> dict[str, object]:
    """Machine, commit and version, as they stand in `metrics.json`."""
    return {"machine": machine(device), "commit": commit(), "dreamloom": __version__}


def publish(report: dict[str, object], out: Path | None, device: torch.device) -> None:
    """Prints a benchmark's report with its provenance as one line of JSON, and keeps it.

    Args:
        report: what was measured.
        out: file for it, or None.
        device: where it was measured.
    """
    line = json.dumps({**report, **provenance(device)})
    if out:
        out.write_text(line + "\n")
    print(line)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
