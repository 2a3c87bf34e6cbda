"""Pictures made while scoring, or afterwards: the same, without a tile read twice."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, SETTINGS, all_files, files, table
from PIL import Image

from pipelines._runs import Execution
from pipelines.export import export
from pipelines.score import ScoreTask, score
from wsi_ats.errors import SettingsError
from wsi_ats.files import read_json, write_json
from wsi_ats.models.checkpoints import save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.slides.base import SlideRef
from wsi_ats.slides.wrappers import CountingSlide
from wsi_ats.tasks.targets import Target

NAMES = [f"{folder}slide_{i:03d}" for i in range(6) for folder in ("", "tiles/")]


@pytest.fixture(scope="module")
def drawn(client, refs, model, tmp_path_factory):
    """Scores with pictures, and their summary."""
    out = tmp_path_factory.mktemp("drawn") / "scores"
    return out, score(refs, model, out, pictures=True, execution=Execution(scheduler=client))


def model_of_kind(folder, kind):
    settings = SETTINGS.with_values([f"model.kind={kind}"] + ["model.scale=0.25"] * (kind == "image"))
    target = Target("classification", ("negative", "positive"))
    torch.manual_seed(0)
    save_model(folder, model_for(settings, target), settings, target)
    return folder


def test_each_slide_has_a_picture_and_a_contact_sheet_and_the_scores_are_those_without(
    drawn, refs, model, client, tmp_path
):
    out, summary = drawn
    assert summary.exit_code == 0
    assert "without_contact_sheet" not in summary.notes
    assert all_files(out / "pictures") == sorted(f"{name}.png" for name in NAMES)
    score(refs, model, tmp_path, execution=Execution(scheduler=client))
    rows, plain = (
        [{**row, "seconds": ""} for row in table(each / "predictions.csv")] for each in (out, tmp_path)
    )
    assert rows == plain, "no byte more was read"
    assert not (tmp_path / "pictures").exists()


def test_pictures_need_no_read_beyond_those_of_scoring(refs, model, drawn, tmp_path, monkeypatch):
    reads = []
    read_regions = CountingSlide.read_regions

    def counted(self, *arguments):
        reads.append(arguments[0])
        return read_regions(self, *arguments)

    monkeypatch.setattr(CountingSlide, "read_regions", counted)
    numbers = []
    for number, pictures in enumerate((False, True)):
        task = ScoreTask(
            *(tmp_path / str(number), "identity", model, read_json(model / "model.json")["digest"]),
            *(Target("classification", ("negative", "positive")), SETTINGS, 0),
            pictures=pictures,
        )
        reads.clear()
        task(refs[0])
        numbers.append(len(reads))
    assert numbers[0] == numbers[1] > 0
    assert files(tmp_path / "1" / "pictures") == ["slide_000.png", "tiles"]
    assert files(tmp_path / "1" / "pictures" / "tiles") == ["slide_000.png"]


def test_pictures_made_afterwards_are_the_same_to_the_pixel(run, drawn, tmp_path):
    out, _ = drawn
    ran = run("export", out, "--to", "pictures", "--out", tmp_path, "--json")
    assert ran.json["counts"] == {"exported": 6, "without_tiles": 0}
    assert ran.json["notes"] == {"pictures": "12 pictures"}
    for name in NAMES:
        with (
            Image.open(out / "pictures" / f"{name}.png") as one,
            Image.open(tmp_path / "pictures" / f"{name}.png") as other,
        ):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_type_and_resolution_can_be_chosen_and_the_slides_may_have_moved(run, drawn, slides, tmp_path):
    scores = tmp_path / "scores"
    shutil.copytree(drawn[0], scores)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(slides / "slide_000.tif", tmp_path / "elsewhere")
    for path in (scores / "records").glob("*.json"):
        record = read_json(path)
        write_json(path, record | {"slide": record["slide"] | {"path": f"/nowhere/{path.stem}.tif"}})
    words = ["export", scores, "--to", "pictures", "--picture-type", "pdf", "--dpi", "80", "--json"]
    ran = run(*words, "--slides", tmp_path / "elsewhere", "--out", tmp_path / "out", code=1)
    assert files(tmp_path / "out" / "pictures") == ["slide_000.pdf", "tiles"]
    assert files(tmp_path / "out" / "pictures" / "tiles") == ["slide_000.pdf"]
    assert ran.json["failed"].keys() == {f"slide_{i:03d}" for i in range(1, 6)}
    assert "is not there; score it again, or name the folder" in ran.json["failed"]["slide_001"]


def test_pictures_that_are_wanted_later_are_made_by_the_same_command(refs, model, drawn, client, tmp_path):
    shutil.copytree(drawn[0], tmp_path / "scores")
    (tmp_path / "scores" / "pictures" / "slide_002.png").unlink()
    again = score(refs, model, tmp_path / "scores", execution=Execution(scheduler=client))
    assert again.reused == 5, "the record names the picture"
    shutil.rmtree(tmp_path / "scores")
    score(refs, model, tmp_path / "scores", execution=Execution(scheduler=client))
    with_pictures = score(
        refs, model, tmp_path / "scores", pictures=True, execution=Execution(scheduler=client)
    )
    assert with_pictures.reused == 0
    for folder in (tmp_path / "scores" / "pictures", tmp_path / "scores" / "pictures" / "tiles"):
        assert len(list(folder.glob("*.png"))) == 6
    assert (
        score(refs, model, tmp_path / "scores", pictures=True, execution=Execution(scheduler=client)).reused
        == 6
    )


@pytest.mark.parametrize(("kind", "why"), [("image", "reads no tiles"), ("mil", "does not keep all tiles")])
def test_kinds_without_tiles_in_memory_say_so(run, refs, client, tmp_path, kind, why):
    model = model_of_kind(tmp_path / "model", kind)
    out = tmp_path / "scores"
    summary = score(refs[:2], model, out, pictures=True, execution=Execution(scheduler=client))
    assert summary.exit_code == 0
    assert summary.notes["without_contact_sheet"].startswith(f"2, because a model of kind {kind} {why}")
    assert all_files(out / "pictures") == ["slide_000.png", "slide_001.png"]
    ran = run("export", out, "--to", "pictures", "--out", tmp_path / "out", "--json")
    drawn = all_files(tmp_path / "out" / "pictures")
    if kind == "mil":
        assert drawn == sorted(f"{name}.png" for name in NAMES[:4])
    else:
        assert drawn == ["slide_000.png", "slide_001.png"]
        assert ran.json["notes"]["pictures"].endswith("no contact sheet for 2 slides scored as one image")


def test_uniform_draws_have_both_pictures(refs, client, tmp_path):
    model = model_of_kind(tmp_path / "model", "uniform")
    score(refs[:1], model, tmp_path / "out", pictures=True, execution=Execution(scheduler=client))
    assert files(tmp_path / "out" / "pictures") == ["slide_000.png", "tiles"]
    assert files(tmp_path / "out" / "pictures" / "tiles") == ["slide_000.png"]


def test_a_slide_without_tissue_has_a_picture_that_shows_why(run, model, client, no_tissue, tmp_path):
    tifffile.imwrite(
        tmp_path / "glass.tif",
        no_tissue.read_regions(0, np.array([[0, 0]]), 900, 600)[0],
        tile=(64, 64),
        photometric="rgb",
        resolution=(20_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    ref = SlideRef.from_path(tmp_path / "glass.tif")
    out = tmp_path / "out"
    summary = score([ref], model, out, pictures=True, execution=Execution(scheduler=client))
    assert summary.counts["no_tissue"] == 1
    assert files(out / "pictures") == ["glass.png"]
    ran = run("export", out, "--to", "pictures", "--out", tmp_path / "exported", "--json")
    assert ran.json["notes"]["pictures"] == "1 picture; no contact sheet for 1 slide without tissue"
    assert (tmp_path / "exported" / "pictures" / "glass.png").read_bytes() == (
        out / "pictures" / "glass.png"
    ).read_bytes()


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        (["csv"], {"dpi": 300}, "--dpi has no effect on csv; leave it out, or add --to pictures"),
        (["qupath"], {"picture_type": "svg"}, "--picture-type has no effect on qupath"),
        (["pictures"], {"picture_type": "gif"}, "a picture is one of png, svg, pdf, not 'gif'"),
        (["pictures"], {"dpi": 5}, "pictures have 50 to 1200 pixels per inch, not 5"),
        (["pictures"], {"colour": "red"}, "--colour has no effect on pictures; no format has it"),
    ],
)
def test_options_without_effect_and_wrong_values_are_refused(drawn, tmp_path, to, options, said):
    with pytest.raises(SettingsError, match=said.split(";")[0]) as caught:
        export(drawn[0], tmp_path / "out", to=to, options=options)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("score", "--pictures"), ("export", "--to", "pictures")])
def test_without_matplotlib_pictures_are_refused_before_any_work(
    run, slides, model, drawn, tmp_path, without, monkeypatch, words
):
    name, *rest = words
    source = slides if name == "score" else drawn[0]
    without("matplotlib")
    monkeypatch.setattr("wsi_ats.results.exports.format.find_spec", lambda name: None)
    more = ["--model", model] if name == "score" else []
    ran = run(name, source, *more, *rest, "--out", tmp_path / "out", scheduler=None, code=2)
    assert ran.stderr.endswith('is not installed; pip install "wsi-ats[plots]"\n')
    assert not (tmp_path / "out").exists()


def test_the_page_shows_what_the_code_draws(refs, client, tmp_path):
    """If pictures look different now, copy those that the message names to ``docs/images``."""
    settings = SETTINGS.with_values(["sampling.draws=2"])
    target = Target("classification", ("negative", "positive"))
    torch.manual_seed(0)
    network = model_for(settings, target)
    for part in (network.attention.logit, network.head):
        torch.nn.init.normal_(part.weight, std=0.7)
    save_model(tmp_path / "model", network, settings, target)
    score(refs[1:2], tmp_path / "model", tmp_path, pictures=True, execution=Execution(scheduler=client))
    for kind, name in (("slide", refs[1].id), ("tiles", f"tiles/{refs[1].id}")):
        new = tmp_path / f"pictures_{kind}.png"
        with Image.open(tmp_path / "pictures" / f"{name}.png") as drawn:
            small = drawn.convert("RGB")
        if kind == "tiles":  # few colours make small files, but steps in a scale of colours
            small = small.quantize(256, dither=Image.Dither.NONE)
        small.save(new, optimize=True)
        with Image.open(ROOT / "docs" / "images" / new.name) as kept:
            assert kept.size == small.size, new
            # Another processor may draw some other tiles, as it rounds attention.
            unlike = np.abs(np.asarray(kept.convert("RGB"), int) - np.asarray(small.convert("RGB"), int)).max(
                -1
            )
        assert (unlike > 64).mean() < {"slide": 0.05, "tiles": 0.4}[kind], new
    assert (
        sum((ROOT / "docs" / "images" / f"pictures_{kind}.png").stat().st_size for kind in ("slide", "tiles"))
        < 300_000
    )
