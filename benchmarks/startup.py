"""CPU time of short commands beside the floor: the time to import torch and timm.

``python -m benchmarks.startup`` runs each command in processes of its own, all commands in turn, once to warm
up and then in each round; figures are medians over rounds. Seconds are CPU time, with that of the command's
workers, which it waits for. One small synthetic slide is scored by a small untrained network; scores of
many slides for ``evaluate`` are made up. Aims: ``score`` at most 1.5 times the floor, ``evaluate`` of 1,000
slides with 1,000 resamples at most 3 seconds, ``info`` and ``export`` at most one.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.report import Rows, command, report
from benchmarks.synthetic import TARGET, slide_of, untrained
from wsi_ats.models.checkpoints import save_model
from wsi_ats.settings import Settings
from wsi_ats.tables.files import read_parquet, write_csv, write_parquet

_SETTINGS = ("model.backbone=test_resnet", "model.pretrained=false", "sampling.tiles=16")
_FLOOR = "import torch, timm"
_ROOT = Path(__file__).parents[1]
# Aims: times the floor, or seconds.
_AIMS = {"score": 1.5, "evaluate 1000": 3.0, "info": 1.0, "export": 1.0}


def processor_seconds(words: Sequence[str]) -> float:
    """Run Python with some arguments, and return its CPU time and that of its children in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=_ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_scores(one: Path, folder: Path, slides: int) -> list[str]:
    """Make up scores and labels of many slides from those of one; return the command that compares them."""
    table, metadata = read_parquet(one / "predictions.parquet")
    generator, names = np.random.default_rng(slides), [f"slide_{number}" for number in range(slides)]
    positive = np.arange(slides) % 2
    probability = 1 / (1 + np.exp(-generator.normal(2.0 * positive - 1, 2)))
    columns = {name: values * slides for name, values in table.items()} | {
        "slide_id": names,
        "case_id": names,
        TARGET.columns[0]: (1 - probability).tolist(),
        TARGET.columns[1]: probability.tolist(),
    }
    folder.mkdir()
    (folder / "run.json").write_bytes((one / "run.json").read_bytes())
    write_parquet(folder / "predictions.parquet", columns, metadata=metadata)
    labels = folder / "labels.csv"
    write_csv(labels, {"slide_id": names, "label": [TARGET.names[number] for number in positive]})
    return ["evaluate", str(folder), "--labels", str(labels), "--out", str(folder / "out"), "--overwrite"]


def commands(slide: Path, folder: Path, few: int, many: int) -> dict[str, list[str]]:
    """Return the arguments of each command, by name."""
    settings = Settings().with_values(_SETTINGS)
    save_model(folder / "model", untrained(settings), settings, TARGET)
    scores = folder / "scores"
    score = ["score", str(slide), "--model", str(folder / "model"), "--out", str(scores), "--overwrite"]
    processor_seconds(["-m", "pipelines", *score])
    export = ["export", str(scores), "--to", "qupath", "--out", str(folder / "exported"), "--overwrite"]
    found = {
        "--help": ["--help"],
        "info": ["info", str(slide)],
        "score": score,
        "export": export,
        **{
            f"evaluate {count}": make_scores(scores, folder / f"scores_{count}", count)
            for count in (few, many)
        },
    }
    return {"floor": ["-c", _FLOOR]} | {name: ["-m", "pipelines", *words] for name, words in found.items()}


def measure(sides: dict[str, list[str]], rounds: int) -> Rows:
    """Run all commands in turn, and compare each with the floor."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, words in sides.items():
            found[name].append(processor_seconds(words))
    seconds = {name: median(each[1:]) for name, each in found.items()}
    return [
        {
            "command": f"python -c '{_FLOOR}'" if name == "floor" else name,
            "processor_seconds": value,
            "times_floor": value / seconds["floor"],
            "aim": _aim(name),
        }
        for name, value in seconds.items()
    ]


def _aim(name: str) -> str | None:
    aim = _AIMS.get(name)
    return None if aim is None else f"{aim:g} x floor" if name == "score" else f"{aim:g} s"


def main() -> None:
    """Print the table and write it to ``startup.csv``."""
    parser = command(__doc__, slides=True)
    parser.add_argument("--side", type=int, default=4096, help="side of the slide in pixels")
    parser.add_argument(
        "--evaluated", type=int, nargs=2, default=(8, 1000), help="numbers of slides to evaluate"
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        slide = slide_of(given.slides.resolve(), given.side)
        rows = measure(commands(slide, Path(folder), *given.evaluated), given.rounds)
    report("CPU time of commands", "startup", rows, given.out, machine=True)


if __name__ == "__main__":
    main()
