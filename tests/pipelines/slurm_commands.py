"""Stand-ins for SLURM's commands on this machine: a job is a process group.

Run as ``python slurm_commands.py sbatch|srun|scancel|squeue ARGUMENTS``. Jobs are known by the folder
``SLURM_JOBS``: of each its script, its output, its process and, when it has ended, its exit code. With
``SLURM_HELD`` in the environment they stay in the queue.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scancel", "squeue")


def install(folder: Path) -> dict[str, str]:
    """Make the commands; returns the environment in which they are found."""
    for name in COMMANDS:
        path = folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (folder / "jobs").mkdir()
    beside = Path(sys.executable).parent
    path = os.pathsep.join([str(folder / "bin"), str(beside), os.environ["PATH"]])
    return {"PATH": path, "SLURM_JOBS": str(folder / "jobs")}


def ended(jobs: Path) -> dict[str, int]:
    """Exit codes of the jobs that have ended."""
    return {path.stem: int(path.read_text()) for path in sorted(jobs.glob("*.code"))}


def sbatch(jobs: Path, words: list[str]) -> int:
    options, rest = _options(words)
    if "wrap" in options:
        text = f"#!/bin/sh\n{options['wrap']}\n"
    else:
        text = Path(rest[0]).read_text(encoding="utf-8")
        lines = re.findall(r"^#SBATCH +(.*)$", text, re.M)
        options = _options([word for line in lines for word in line.split()])[0] | options
    tasks = int(options.get("ntasks", options.get("n", options.get("nodes", 1))))
    first, _, last = options.get("array", "").partition("-")
    number = 1 + len(list(jobs.glob("*.job")))
    for index in range(int(first), int(last) + 1) if first else [None]:
        name = str(number) if index is None else f"{number}_{index}"
        script = jobs / f"{name}.job"
        script.write_text(text, encoding="utf-8")  # as SLURM, which keeps what it was given
        (jobs / f"{name}.tmp").mkdir()
        environment = {
            **os.environ,
            "SLURM_JOB_ID": name,
            "SLURM_NTASKS": str(tasks),
            "TMPDIR": str(jobs / f"{name}.tmp"),
            **({} if index is None else {"SLURM_ARRAY_TASK_ID": str(index)}),
        }
        if "SLURM_HELD" in os.environ:
            continue
        with (jobs / f"{name}.out").open("w") as output:
            subprocess.Popen(
                [sys.executable, __file__, "job", name],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    sys.stdout.write(f"Submitted batch job {number}\n")
    return 0


def job(jobs: Path, words: list[str]) -> int:
    """Run a job; whatever it has started ends with its script."""
    (name,) = words
    process = subprocess.Popen(["/bin/bash", str(jobs / f"{name}.job")], start_new_session=True)
    (jobs / f"{name}.process").write_text(str(process.pid))
    code = process.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            time.sleep(1)
    shutil.rmtree(jobs / f"{name}.tmp", ignore_errors=True)
    (jobs / f"{name}.code").write_text(str(code))
    return code


def srun(jobs: Path, words: list[str]) -> int:
    options, rest = _options(words)
    tasks = int(options.get("ntasks", os.environ["SLURM_NTASKS"]))
    return max([each.wait() for each in [subprocess.Popen(rest) for _ in range(tasks)]])


def scancel(jobs: Path, words: list[str]) -> int:
    for name in _options(words)[1]:
        try:
            os.killpg(int((jobs / f"{name}.process").read_text()), signal.SIGTERM)
        except FileNotFoundError:  # still in the queue
            (jobs / f"{name}.code").write_text("0")
        except ProcessLookupError:
            pass
    return 0


def squeue(jobs: Path, words: list[str]) -> int:
    running = {path.stem for path in jobs.glob("*.job")} - ended(jobs).keys()
    sys.stdout.writelines(f"{name}\n" for name in sorted(running))
    return 0


def _options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Part ``--name=value``, ``--name`` and ``-n value`` from what follows."""
    options, rest = {}, list(words)
    while rest and rest[0].startswith("-"):
        name, _, value = rest.pop(0).partition("=")
        options[name.lstrip("-")] = value if name.startswith("--") else rest.pop(0)
    return options, rest


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](Path(os.environ["SLURM_JOBS"]), sys.argv[2:]))
