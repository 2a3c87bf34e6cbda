"""The needle benchmark's records become a table, and its controls are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from test_needle_slides import material

from benchmarks import needle, needle_slides
from wsi_ats.config import Settings
from wsi_ats.slides import SlideRef


def test_every_arm_has_settings_that_are_valid():
    for changes in needle.ARMS.values():
        Settings().with_values([*needle.SETTINGS, *changes]).check_trainable()


def test_intervals_hold_the_mean_and_are_narrower_with_more_slides():
    rng = np.random.default_rng(0)

    def run(n):
        return [(int(i % 2), float(rng.normal() + (i % 2))) for i in range(n)]

    few, many = needle.interval([run(40), run(40)]), needle.interval([run(400), run(400)])
    for area, low, high in (few, many):
        assert low < area < high
    assert many[2] - many[1] < few[2] - few[1]


def test_an_interval_counts_ties_half_and_does_not_compare_scores_of_different_seeds():
    assert needle.interval([[(0, 0.5), (1, 0.5)]]) == (0.5, 0.5, 0.5)
    assert needle.interval([[(0, 0.8), (1, 0.9)], [(0, 0.1), (1, 0.2)]]) == (1.0, 1.0, 1.0)


def test_shuffled_labels_are_the_same_labels():
    refs = [SlideRef(str(i), "", str(i), "ab"[i % 2]) for i in range(40)]
    found = needle.shuffled(refs, 1)
    assert [ref.id for ref in found] == [ref.id for ref in refs]
    assert sorted(ref.label for ref in found) == sorted(ref.label for ref in refs)
    assert 8 < sum(a.label == b.label for a, b in zip(refs, found, strict=True)) < 32
    assert found == needle.shuffled(refs, 1) != needle.shuffled(refs, 2)


def record(area, tiles):
    return {"scores": [(0, 0.0), (1, area)], "tiles": tiles, "bytes": 1e6 * tiles, "in_lesion": 0.25}


def test_the_table_tells_reads_relative_to_all_tiles():
    found = {
        seed: {"attention sampling": record(1.0, 20), "MIL on all tiles": record(0.0, 1000 * seed)}
        for seed in (1, 3)
    }
    rows = needle.summary({(True, 0.05): found})
    assert [row["arm"] for row in rows] == ["attention sampling", "MIL on all tiles"]
    assert [row["reads of MIL's"] for row in rows] == [0.01, 1.0]
    assert [row["AUC"] for row in rows] == [1.0, 0.5]  # the second is a tie
    assert rows[0]["in lesion"] == 0.25
    assert rows[0]["train s"] is None


def test_arms_are_trained_and_scored_once_and_the_slides_deleted(tmp_path, monkeypatch, capsys):
    calls, write_slides = [], needle_slides.write_slides

    def write(folder, _, *, pairs, lesion_fraction, rng, visible):
        calls.append(folder.name)
        write_slides(
            folder,
            material(),
            pairs=pairs,
            lesion_fraction=lesion_fraction,
            rng=rng,
            visible=visible,
            side=4096,
        )

    def here(function, job):
        """In this process, to save the seconds that another needs to start."""
        calls.append(job.arm)
        job.record.parent.mkdir(parents=True, exist_ok=True)
        return function(job)

    monkeypatch.setattr(needle, "_alone", here)
    monkeypatch.setattr(needle_slides, "read_material", read)
    monkeypatch.setattr(needle_slides, "write_slides", write)
    settings = Settings().with_values(
        [*needle.SETTINGS, "training.epochs=1", "sampling.tiles=2", "training.calibration_tiles=16"]
    )
    collection = needle.Collection(0, 0.2, True, 4, 2, "test")
    arms = ["attention sampling, fine-tuned", "MIL on all tiles, fine-tuned features", "baselines"]
    found = needle.measure(collection, arms, settings, data=tmp_path, work=tmp_path)
    assert calls == ["train", "test", *arms]
    assert found.keys() == {*arms[:2], *needle.BASELINES}
    sampling, mil, *others = found.values()
    assert sampling["tiles"] == 2 < mil["tiles"] == mil["tissue"]
    assert sampling["train_tiles"] == 8
    assert 0 <= sampling["in_lesion"] <= 1
    assert mil["in_lesion"] is None
    for each in others:
        assert sorted(label for label, _ in each["scores"]) == [0, 1]
    assert not (tmp_path / "slides" / collection.name).exists()
    assert "attention sampling" in capsys.readouterr().out


def read(*_):
    return {split: material() for split in needle_slides.SPLITS}


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_images_of_validation_are_trained_on_only_when_nothing_is_chosen(split, tmp_path, monkeypatch):
    seen = {}

    def write(folder, images, **_):
        seen[folder.name] = len(images.images[needle_slides.Kind.LESION])

    monkeypatch.setattr(needle_slides, "read_material", read)
    monkeypatch.setattr(needle_slides, "write_slides", write)
    needle.Collection(0, 0.2, True, 2, 2, split).write(tmp_path, tmp_path)
    assert seen == {"train": 4 if split == "test" else 2, split: 2}
