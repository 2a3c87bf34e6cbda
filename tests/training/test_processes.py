"""Two processes that train together end where one with twice the slides in a step does.

To rounding: sums are added up in another order. In double precision weights then differ by some 1e-12. In
single precision they differ by far more than a sum's own 1e-7, because Adam divides a gradient by its size:
where it is hardly larger than its rounding error, so is the error of the step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.runs import SETTINGS, TARGET, example, slide_of, unreadable
from training.runs import metrics_in as columns
from wsi_ats.errors import ArtifactError, ModelError, SettingsError
from wsi_ats.models.batches import Example, TileReader
from wsi_ats.models.kinds import model_for
from wsi_ats.slides.base import SlideRef
from wsi_ats.tasks.targets import Target
from wsi_ats.training import fit as training
from wsi_ats.training.processes import Processes, started_by_torchrun

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without processes")

# Seven slides in steps of four: four and three, of which the second process has one.
NAMES = [f"s{i}{'pv'[i % 2]}" for i in range(7)]
WATCHED = [f"s{i}{'pv'[i % 2]}" for i in range(20, 25)]
CASES = {"s0p": "a", "s2p": "a", "s4p": "a", "s1v": "b", "s3v": "b"}

ALONE = ["training.epochs=2", "training.tiles=4", "training.joint_epochs=0"]
PHASES = [
    *("training.epochs=2", "training.tiles=4", "training.attention_epochs=2", "training.attention_tiles=10"),
    "training.joint_epochs=1",
]
# Settings for two processes, and the unreadable slides.
RUNS: Mapping[str, list[str]] = {
    "plain": ["training.ema=0.9", "training.checkpoint_steps=1"],
    "single": ["training.precision=float32"],
    "one each": ["training.slides_per_step=1", "training.balance=weights", "training.entropy=0.1"],
    "bad": ["training.balance=sampling", "training.read_ahead=2"],
    "classifier": [*ALONE, "model.attention=test_resnet"],
    "some blocks": ["training.fine_tuning=last-1", "training.weight_decay=0.5"],
    "mean": ["model.cases=mean", "training.entropy=0.1", "training.slides_per_step=1"],
    "union": ["model.cases=union", "training.entropy=0.1", "training.slides_per_step=1"],
    "mil": ["model.kind=mil", "training.epochs=1", "training.joint_epochs=0"],
    "all phases": [*PHASES, "training.ema=0.5"],
    "all phases, frozen": [*PHASES, "training.fine_tuning=frozen"],
}
LEARNING = ["training.slides_per_step=2", "training.joint_epochs=2", "training.warmup=0.0"]


def examples(names: list[str]) -> list[Example]:
    made = (example(name) for name in names)
    return [
        Example(SlideRef(each.ref.id, each.ref.path, CASES.get(each.ref.id, each.ref.id)),
                each.overview, each.target)
        for each in made
    ]  # fmt: skip


def train(root: Path, name: str, processes: Processes, *changes: str, opener=None, **options):
    """Train one of the runs; by one process alone with twice the slides in a step."""
    settings = SETTINGS.with_values([*LEARNING, *RUNS[name], *changes])
    if processes.count == 1:
        settings = settings.with_values([f"training.slides_per_step={2 * settings.training.slides_per_step}"])
    bad: list[str] = []
    rows: list[dict] = []
    real = training.model_for
    training.model_for = lambda *given: model_for(*given) if name == "single" else model_for(*given).double()
    opener = opener or (unreadable("s3v", "s20p") if name == "bad" else lambda ref: slide_of(ref.id))
    try:
        with TileReader(2, opener) as reader:
            found = training.fit(
                examples(NAMES),
                examples(WATCHED),
                settings,
                target=TARGET,
                folder=root / name,
                device=torch.device("cpu"),
                on_epoch=options.pop("on_epoch", rows.append),
                reader=reader,
                processes=processes,
                on_bad=lambda slide_id, error: bad.append(slide_id),
                **options,
            )
    finally:
        training.model_for = real
    return found.model, rows, bad


def stop(row) -> None:
    raise KeyboardInterrupt


def work(root: Path, processes: Processes) -> None:
    """Work of each of two processes."""

    def note(name: str, model, rows, bad) -> None:
        place = root / f"{name} of {processes.rank}"
        save_file({key: each.contiguous() for key, each in model.state_dict().items()}, place)
        place.with_suffix(".json").write_text(json.dumps([rows, bad]))

    for name in RUNS:
        note(name, *train(root, name, processes))

    again = root / "again"
    try:
        train(again, "plain", processes, on_epoch=stop)
    except KeyboardInterrupt:
        processes.gather(None)  # the first may still be writing; torchrun starts none before all have ended
        note("again", *train(again, "plain", processes))

    # A slide that one process cannot read, at any time, and the other can.
    opener = unreadable(*(["s1v", "s2p"] if processes.rank else []))
    note("one-sided", *train(root / "one-sided", "plain", processes, opener=opener))
    try:
        train(root / "too many", "plain", processes, opener=opener, max_bad=0, on_epoch=lambda row: None)
    except ModelError as error:
        (root / f"too many of {processes.rank}").write_text(str(error))
        raise


def torchrun(*words: object, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Results of two processes; their last action fails."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(__file__, folder)
    assert (folder / "one-sided of 1").exists(), done.stderr
    assert done.returncode != 0
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_where_one_with_twice_the_slides_does(root, tmp_path, name):
    model, rows, bad = train(tmp_path, name, Processes())
    tolerance = {"rtol": 0, "atol": 2e-3 if name == "single" else 1e-9}
    for rank in range(2):
        found = load_file(root / f"{name} of {rank}")
        for key, value in model.state_dict().items():
            torch.testing.assert_close(
                found[key], value, **tolerance, msg=lambda text, key=key: f"{key}: {text}"
            )
        theirs, reported = json.loads((root / f"{name} of {rank}.json").read_text())
        assert sorted(reported) == sorted(bad) == (["s20p", "s3v"] if name == "bad" else [])
        for one, other in zip(theirs, rows, strict=True):
            assert one.keys() == other.keys()
            expected = {key: value for key, value in other.items() if key != "seconds"}
            assert {key: one[key] for key in expected} == pytest.approx(
                expected, abs=1e-3 if name == "single" else 1e-9
            )
    same = (load_file(root / f"{name} of {rank}") for rank in range(2))
    assert all(torch.equal(*each) for each in zip(*(one.values() for one in same), strict=True))


def test_two_processes_share_the_features_of_a_slide(root):
    known = [path for path in (root / "all phases, frozen" / "features").rglob("*") if path.is_file()]
    assert len(known) == len(NAMES) + len(WATCHED)


def test_frozen_parameters_stay_unchanged(root):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = model_for(SETTINGS.with_values(RUNS["classifier"]), TARGET).double()
    found = load_file(root / "classifier of 0")
    for key, value in start.attention.state_dict().items():
        assert torch.equal(found[f"attention.{key}"], value), key


def test_two_processes_go_on_to_the_same_weights(root):
    one, other = (load_file(root / f"{name} of 1") for name in ("plain", "again"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert columns(root / "plain") == columns(root / "again" / "plain")


def test_a_state_of_two_processes_is_not_for_one(root):
    with pytest.raises(ArtifactError, match=r"another number of processes; use --overwrite"):
        train(root, "plain", Processes(), "training.slides_per_step=1")


def test_a_slide_that_one_process_cannot_read_is_known_to_both(root):
    one, other = (load_file(root / f"one-sided of {rank}") for rank in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    noted = [json.loads((root / f"one-sided of {rank}.json").read_text()) for rank in range(2)]
    assert set(noted[0][1]) == set(noted[1][1])
    assert {"s1v", "s2p"} >= set(noted[0][1]) > set()
    assert [row["failed"] for row in noted[0][0]] == [row["failed"] for row in noted[1][0]]


def test_an_error_in_one_process_ends_both(root):
    said = (root / "too many of 1").read_text()
    assert "slides could not be read, and --max-bad allows 0" in said


def test_survival_is_for_one_process(tmp_path):
    with pytest.raises(SettingsError, match=r"compares the slides of a step, but each of 2 processes"):
        training.fit(
            [], [], SETTINGS.with_values(["model.task=survival"]), target=Target("survival", ("risk",)),
            folder=tmp_path, reader=None, device=torch.device("cpu"), on_epoch=print,
            processes=Processes(0, 2),
        )  # fmt: skip


def test_one_process_alone_joins_nobody():
    with started_by_torchrun({}, torch.device("cpu")) as alone:
        assert alone == Processes(0, 1)
        assert alone.first
        assert not torch.distributed.is_initialized()


def test_every_item_is_one_process_work():
    shares = [Processes(rank, 3).share(range(10)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(10))
    assert [len(share) for share in shares] == [4, 3, 3]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with started_by_torchrun(dict(os.environ), torch.device("cpu")) as these:
        work(Path(sys.argv[1]), these)
