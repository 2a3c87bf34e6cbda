"""Killed at any moment, or on a full disk, a run that is started again ends as if nothing had happened.

One process that has everything imported makes a copy of itself for every attempt. A copy is killed by
SIGKILL, which no program can catch, at a given place or at any time; the last is left to finish.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.runs import SETTINGS, metrics_in, slide_of, trained, trusting
from wsi_ats.errors import ArtifactError
from wsi_ats.models import checkpoints
from wsi_ats.models.batches import TileReader
from wsi_ats.nn.backbone import create_backbone
from wsi_ats.slides.memory import MemorySlide
from wsi_ats.training import attention, progress
from wsi_ats.training.learner import Learner
from wsi_ats.training.validation import Metrics

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits are those of POSIX systems")

PHASES = [
    *("training.epochs=2", "training.tiles=4", "training.attention_epochs=2", "training.attention_tiles=10"),
    *("training.joint_epochs=2", "training.feature_dropout=0.5"),
]
# Four steps an epoch, with a state after the second or third.
KINDS = {
    "not ahead": ["training.read_ahead=0", "training.checkpoint_steps=2"],
    "average": ["training.read_ahead=1", "training.checkpoint_steps=2", "training.ema=0.9"],
    "balanced": ["training.read_ahead=3", "training.checkpoint_steps=3", "training.balance=sampling"],
    "patient": [
        *(
            "training.joint_epochs=6",
            "training.patience=1",
            "training.ema=0.5",
            "training.checkpoint_steps=1",
        ),
        *("training.learning_rate=0.0003", "training.head_learning_rate=0.003", "training.warmup=0.0"),
        "training.monitor=score",  # after two epochs there is nothing left to improve
    ],
    "phases": [*PHASES, "training.read_ahead=2", "training.checkpoint_steps=3", "training.ema=0.5"],
    "patient phases": [
        *PHASES,
        "training.patience=1",
        "training.read_ahead=0",
        "training.checkpoint_steps=2",
    ],
    "frozen phases": [*PHASES, "training.fine_tuning=frozen"],
}
# Where attempts end, one after the other.
PLACES = {
    "calibration": ("not ahead", ["calibration"]),
    "just after a state": ("balanced", ["state 1", "state 1", "state 2", "state 2"]),
    "reads in flight": ("balanced", ["read 12", "read 30"]),
    "reads in flight, not ahead": ("not ahead", ["read 23"]),
    "validation": ("average", ["validation"]),
    "while a state is written": ("average", ["half of state 1", "half of state 2", "half of state 2"]),
    "while the best weights are written": ("patient", ["half of best 1", "half of best 2"]),
    "between best weights and state": ("patient", ["best 1", "best 2"]),
    "between state and figures": ("average", ["figures 1", "figures 2"]),
    "several": ("patient", ["calibration", "state 3", "validation", "read 9", "figures 1"]),
    "at any time": ("average", ["any time"] * 6),
    "at any time, far ahead": ("balanced", ["any time"] * 6),
    "full disk": ("balanced", ["full disk 3"]),
    "full disk at the best weights": ("patient", ["full disk 5"]),
    # Steps 1 to 8 are of the classifier, 9 to 16 of attention, 17 to 24 of all together.
    "in each phase": ("phases", ["step 6", "step 4", "step 9", "step 6"]),
    "at the end of each phase": ("phases", ["step 8", "step 5", "step 9", "step 5"]),
    "survey": ("phases", ["survey", "survey"]),
    "while the survey is written": ("phases", ["half of survey 1"]),
    "between survey and state": ("phases", ["survey written 1"]),
    "while attention is judged": ("phases", ["trust 1", "trust 1"]),
    "on the way to all together": ("phases", ["half of best 1", "best 1"]),
    "patient, in each phase": ("patient phases", ["step 6", "trust 1", "best 1", "figures 1", "best 1"]),
    "full disk at the survey": ("phases", ["full disk 8"]),
    "at any time, in each phase": ("phases", ["any time"] * 8),
    "frozen, in each phase": ("frozen phases", ["step 6", "survey", "step 9", "step 6"]),
    "frozen, while features are written": ("frozen phases", ["row 3", "row 30", "row 11"]),
    "frozen, at any time": ("frozen phases", ["any time"] * 6),
}


class Recorded(TileReader):
    """Keeps which cells of which slides were asked for, in order."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.asked: list = []

    def run(self, jobs):
        self.asked += [(ref.id, job.keywords["cells"].tolist()) for ref, job in jobs]
        return super().run(jobs)


def attempt(folder: Path, changes: list[str]) -> None:
    """Train; leave weights and the list of reads."""
    reader = Recorded(2, lambda ref: slide_of(ref.id))
    found = trained(folder, "training.slides_per_step=2", *changes, reader=reader)
    save_file({name: each.contiguous() for name, each in found.model.state_dict().items()}, folder / "final")
    (folder / "known.json").write_text(
        json.dumps([found.trust and asdict(found.trust), found.by_attention, found.by_uniform])
    )
    (folder / "asked.json").write_text(json.dumps(reader.asked))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a thread goes on for a moment


def at(number: int, act: Callable, real: Callable, *, after: bool = True) -> Callable:
    """A function that does something in its n-th call, after it has done its own work."""
    calls, guard = [], threading.Lock()

    def called(*args, **options):
        with guard:
            calls.append(None)
            mine = len(calls) == number
        if mine and not after:
            act(*args)
        result = real(*args, **options)
        if mine and after:
            act(*args)
        return result

    return called


def break_off(tensors, path) -> None:
    """A file of which half is written."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kill()


def fill_disk() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))


def kill_in_validation() -> None:
    real = Metrics.validate
    watch = at(3, lambda *args: kill(), MemorySlide.read_regions)  # four slides are watched

    def validate(self, *args, **options):
        MemorySlide.read_regions = watch
        return real(self, *args, **options)

    Metrics.validate = validate


def kill_in_survey() -> None:
    real = attention.survey
    look = at(5, lambda *args: kill(), MemorySlide.read_regions)  # twelve slides are surveyed

    def survey(*args, **options):
        MemorySlide.read_regions = look
        return real(*args, **options)

    attention.survey = survey


def prepare(place: str, folder: Path) -> None:
    """Have this process end at a place."""
    what, _, last = place.rpartition(" ")
    number, states = int(last) if last.isdigit() else 1, checkpoints.StateFolder
    if place == "calibration":
        MemorySlide.read_regions = at(4, lambda *args: kill(), MemorySlide.read_regions)
    elif place == "validation":
        kill_in_validation()
    elif place == "survey":
        kill_in_survey()
    elif what == "survey written":
        states.save_named = at(number, lambda *args: kill(), states.save_named)
    elif what == "trust":
        attention.trust = at(number, lambda *args: kill(), attention.trust)
    elif what == "step":
        Learner.take_step = at(number, lambda *args: kill(), Learner.take_step)
    elif what == "row":

        def half(number, row, place):
            return write(number, row[: len(row) // 2], place)

        write = os.pwrite
        os.pwrite = at(number, lambda *args: half(*args) and kill(), os.pwrite, after=False)
    elif what == "read":
        MemorySlide.read_regions = at(number, lambda *args: kill(), MemorySlide.read_regions)
    elif what == "state":
        states.save = at(number, lambda *args: kill(), states.save)
    elif what == "best":
        states.save_best = at(number, lambda *args: kill(), states.save_best)
    elif what == "figures":
        progress.write_csv = at(number, lambda *args: kill(), progress.write_csv, after=False)
    elif what.startswith("half of"):
        name = {"state": "save", "best": "save_best", "survey": "save_named"}[what.split()[-1]]

        def arm(*args):
            checkpoints.save_file = at(1, break_off, checkpoints.save_file)

        setattr(states, name, at(number, arm, getattr(states, name), after=False))
    elif what == "full disk":
        checkpoints.save_file = at(number, lambda *args: fill_disk(), checkpoints.save_file, after=False)


def copy_of_this_process(folder: Path, changes: list[str], place: str | None, wait: float | None) -> int:
    child = os.fork()
    if child:
        if wait is not None:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if place:
            prepare(place, folder)
        attempt(folder, changes)
    except ArtifactError as error:
        with (folder / "said").open("a") as file:  # some bytes are within the limit
            file.write(f"{error}\n")
        os._exit(3)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(4 if sys.exc_info()[0] else 0)


def main(root: Path) -> None:
    create_backbone("test_resnet", pretrained=False)  # imports timm, so that no copy has to
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each copy looks through all that is imported, and so copies its memory
    gc.set_threshold(10_000)
    chance = random.Random(0)
    for name, changes in KINDS.items():
        assert copy_of_this_process(root / name, changes, None, None) == 0, name
    for name, (kind, places) in PLACES.items():
        ends: list[int] = []
        (root / name).mkdir()
        for place in places:
            wait = chance.uniform(0.02, 0.6) if place == "any time" else None
            ends.append(copy_of_this_process(root / name, KINDS[kind], place, wait))
            left = sorted(path.name for path in (root / name).rglob(".*.part.*"))
            (root / name / "ends.json").write_text(json.dumps([ends, left]))
        assert copy_of_this_process(root / name, KINDS[kind], None, None) == 0, name


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "7"}
    done = subprocess.run(  # after so long it hangs, however busy the machine is
        [sys.executable, "-W", "error", __file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def assert_same_end(one: Path, other: Path) -> None:
    first, second = load_file(one / "final"), load_file(other / "final")
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    found, expected = metrics_in(one), metrics_in(other)
    if (one / "features").exists():  # a tile that is known is not read again
        fewer, all_of_them = (list(map(float, each.pop("tiles"))) for each in (found, expected))
        assert sum(fewer) <= sum(all_of_them)
    assert found == expected
    assert (one / "known.json").read_bytes() == (other / "known.json").read_bytes()
    states = [max((each / "checkpoints").glob("step_*")) for each in (one, other)]
    assert states[0].name == states[1].name
    stored = [load_file(each) for each in states]
    assert all(torch.equal(value, stored[1][name]) for name, value in stored[0].items())


@pytest.mark.parametrize("name", PLACES)
def test_a_killed_run_restarted_ends_the_same(root, name):
    kind, places = PLACES[name]
    ends, _ = json.loads((root / name / "ends.json").read_text())
    if "any time" not in places:  # a fast machine may have finished by then
        assert ends == [3 if each.startswith("full") else -signal.SIGKILL for each in places]
    assert_same_end(root / name, root / kind)
    asked, whole = (json.loads((each / "asked.json").read_text()) for each in (root / name, root / kind))
    if kind.startswith("frozen"):
        tiles, every = ([(slide, cell) for slide, cells in of for cell in cells] for of in (asked, whole))
        assert set(tiles) <= set(every)
        every = every[SETTINGS.training.calibration_tiles :]  # read first, and not kept
        assert len(set(every)) == len(every)  # each once, in all epochs and phases
    else:
        assert asked == whole[len(whole) - len(asked) :]  # the same tiles, from where it went on
    if "any time" not in places:
        assert 0 < len(asked) <= len(whole)
        assert (len(asked) < len(whole)) == (places != ["calibration"])


def test_half_written_files_of_a_killed_run_are_removed(root):
    name = "while a state is written"
    _, left = json.loads((root / name / "ends.json").read_text())
    assert left  # the second attempt, of which nothing could be cleared
    assert not list((root / name).rglob(".*.part.*"))


@pytest.mark.parametrize(
    ("name", "file"), [("full disk", "step_"), ("full disk at the best weights", "best.safetensors")]
)
def test_a_full_disk_names_the_file_and_what_to_do(root, name, file):
    said = (root / name / "said").read_text()
    assert file in said
    assert "cannot be written" in said
    assert "make room" in said


def test_another_process_with_other_hashes_ends_in_the_same_weights(root, tmp_path):
    for kind in ("average", "balanced"):
        attempt(tmp_path / kind, KINDS[kind])
        assert_same_end(tmp_path / kind, root / kind)


if __name__ == "__main__":
    attention.trust = trusting(attention.trust)
    main(Path(sys.argv[1]))
