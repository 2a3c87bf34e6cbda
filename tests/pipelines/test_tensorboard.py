"""Events for TensorBoard are the rows of metrics.csv."""

from __future__ import annotations

import sys

import pytest

from pipelines import _tensorboard
from pipelines._tensorboard import check_tensorboard, writing_events
from wsi_ats.errors import SettingsError
from wsi_ats.tables.files import write_csv

ROWS = [{"epoch": 0, "loss": 0.7, "validation_loss": None}, {"epoch": 1, "loss": 0.5, "validation_loss": 0.6}]


class Writer:
    """Stands for TensorBoard's, which need not be installed."""

    def __init__(self, folder: str) -> None:
        self.folder, self.scalars, self.closed = folder, [], False

    def add_scalar(self, *scalar) -> None:
        self.scalars.append(scalar)

    def flush(self) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.closed = True


def write_rows(out, count):
    write_csv(out / "metrics.csv", {name: [row[name] for row in ROWS[:count]] for name in ROWS[0]})


@pytest.fixture
def writers(monkeypatch):
    made = []

    def make(folder):
        made.append(Writer(folder))
        return made[-1]

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = make
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_each_row_is_written_once(writers, tmp_path):
    with writing_events(tmp_path, wanted=True) as update:
        for count in (1, 2):
            write_rows(tmp_path, count)
            update()
    (writer,) = writers
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.scalars == [("loss", 0.7, 0), ("loss", 0.5, 1), ("validation_loss", 0.6, 1)]
    assert writer.closed


def test_a_run_that_goes_on_writes_all_rows_to_an_empty_folder(writers, tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_bytes(b"of the part that was stopped")
    write_rows(tmp_path, 2)
    with writing_events(tmp_path, wanted=True):
        pass
    assert len(writers[0].scalars) == 3
    assert not (tmp_path / "tensorboard").exists()


def test_no_events_are_written_unless_enabled(writers, tmp_path):
    with writing_events(tmp_path, wanted=False) as update:
        update()
    assert not writers


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(_tensorboard, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install .wsi-ats\[tensorboard\]"):
        check_tensorboard()


def test_the_file_can_be_read_by_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_rows(tmp_path, 2)
    with writing_events(tmp_path, wanted=True):
        pass
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, round(each.value, 6)) for each in events.Scalars("loss")] == [(0, 0.7), (1, 0.5)]
    assert [each.step for each in events.Scalars("validation_loss")] == [1]
