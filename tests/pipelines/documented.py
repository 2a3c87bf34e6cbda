"""Commands in the pages of the documentation, and running them on this machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import yaml
from conftest import ROOT, table
from distributed.cli import dask_scheduler, dask_worker

PAGES = (
    *("laptop", "workstation", "slurm", "kubernetes", "storage", "features"),
    *("annotations", "exports", "compare", "get-started"),
    *("camelyon", "tcga", "panda", "cptac"),
)
FILES = {path.stem: path for path in (ROOT / "docs").rglob("*.md")}
TEXTS = {name: FILES[name].read_text(encoding="utf-8") for name in PAGES}

# Programs of others that the pages name; they are not run here, or only by a stand-in.
ELSEWHERE = {"aws", "awk", "cd", "cp", "export", "kubectl", "ls", "mapfile", "mkdir", "pip", "sbatch"}

DASK = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}


def blocks(page: str, language: str) -> list[str]:
    """Blocks of code in a language: ``sh`` is typed, ``bash`` is a script, ``py`` one in Python."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[page], re.M | re.S)


@dataclass(frozen=True)
class Command:
    """A command of ours or of Dask, as a page has it."""

    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def replaced(self, table: Mapping[str, str]) -> Command:
        """With other names of folders and machines."""
        return Command(tuple(_replaced(word, table) for word in self.words), self.environment)


def _replaced(text: str, table: Mapping[str, str]) -> str:
    for there, here in table.items():
        text = text.replace(there, here)
    return text


def commands_in(text: str) -> Iterator[Command]:
    """Commands of a script, without their wrappers; an unknown one is an error."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        parts: list[list[str]] = [[]]
        for token in lexer:
            if token in {"&&", "&", "|", "<("}:
                parts.append([])
            else:
                parts[-1].append(token)
        for part in parts:
            yield from _command(part)


def _command(words: list[str]) -> Iterator[Command]:
    environment = []
    while words and re.match(r"\w+=", words[0]):
        name, _, value = words[0].partition("=")
        environment.append((name, value))
        words = words[1:]
    # The rest redirects its output.
    end = next((i for i, word in enumerate(words) if set(word) & set("<>")), len(words))
    words = words[:end]
    if words[:1] == ["srun"]:
        words = [*dropwhile(lambda word: word.startswith("-"), words[1:])]
    if words[:1] == ["sbatch"]:
        for word in words:
            yield from commands_in(word.partition("=")[2] if word.startswith("--wrap=") else "")
    if words[:2] == ["python", "cluster.py"]:
        words = ["wsi-ats", *words[2:]]
    if words and words[0] not in ELSEWHERE:
        name = Path(words[0]).name
        assert name in {"wsi-ats", "dask"}, f"who knows {words}?"
        yield Command((name, *words[1:]), tuple(environment))


def typed(page: str) -> list[Command]:
    """Return the commands that a page asks to type."""
    return [each for text in blocks(page, "sh") for each in commands_in(text)]


def containers(page: str) -> dict[str, dict]:
    """Containers of a manifest."""
    (text,) = blocks(page, "yaml")
    found = [each.get("spec", {}).get("template") for each in yaml.safe_load_all(text)]
    return {each["name"]: each for pod in found if pod for each in pod["spec"]["containers"]}


def written(page: str) -> list[Command]:
    """Return the commands that a page asks to save: in scripts, crontabs, services, containers."""
    texts = [*blocks(page, "bash"), *(line.split(maxsplit=5)[5] for line in blocks(page, "crontab"))]
    texts += re.findall(r"^ExecStart=(.*)$", "\n".join(blocks(page, "ini")), re.M)
    found = [each for text in texts for each in commands_in(text)]
    pods = containers(page).values() if blocks(page, "yaml") else ()
    return found + [Command(tuple(each["args"])) for each in pods]


def done(out: Path | str, count: int = 6) -> bool:
    """Whether a folder holds scores of all slides."""
    rows = table(Path(out) / "predictions.csv")
    return [row["status"] for row in rows] == ["done"] * count


def carry_out(command: Command, run, scheduler: str | None = "shared") -> None:
    """Run a command of ours in this process; one that trains, as far as it goes in no time."""
    words = [*command.words[1:]]
    if words[0] == "train":
        words[words.index("--out") + 1] = "trained"
        words += ["--config", "ats.toml", "--dry-run"]
    if {"--scheduler", "--workers", "--slides-at-once"} & set(words):
        scheduler = None  # the last two are for a cluster of the command's own
    if "--slides-at-once" in words and "--workers" not in words:
        words += ["--workers", "1"]  # each loads torch
    run(*words, scheduler=scheduler)
    if words[0] == "score":
        assert done(words[words.index("--out") + 1])
