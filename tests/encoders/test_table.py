"""Records of encoders: complete, consistent, and the same in the documentation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from wsi_ats.encoders import ENCODERS, find_encoder, nearest_name
from wsi_ats.errors import ModelError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "encoders.md"


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_every_record_names_its_sources_and_what_is_unknown(encoder):
    assert find_encoder(encoder.name) is encoder
    assert encoder.name == encoder.name.lower()
    assert encoder.hub.count("/") == 1
    assert encoder.page.startswith("https://huggingface.co/")
    assert all(source.startswith("https://") for source in encoder.sources)
    assert len(set(encoder.sources)) == len(encoder.sources) >= 3
    # A number, a resolution or a licence that no page gives is not invented.
    if encoder.licence is None or not encoder.mpp:
        assert encoder.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "pooling of encoder uni is 'max'; give one of class, class"),
        ({"keys": "jax"}, "keys of encoder uni is 'jax'"),
        ({"tile": 225}, "tile of encoder uni is 225; give a multiple of its patch, 16"),
        ({"mpp": (0.0,)}, "uni has a size that is not positive"),
    ],
)
def test_an_impossible_record_is_refused(changes, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(ENCODERS["uni"], **changes)


@pytest.mark.parametrize(
    ("name", "size", "mpp", "found"),
    [
        ("uni", 224, 0.54, ""),
        ("uni", 224, 0.56, "tile.mpp is 0.56, but 0.5 in its training"),
        ("virchow2", 224, 2.0, ""),
        ("virchow2", 224, 4.0, "tile.mpp is 4, but 0.5 or 0.25 or 1 or 2 in its training"),
        ("ctranspath", 224, 7.0, ""),
        ("uni", 256, 0.5, "tile.size is 256, but 224 in its training"),
        ("uni2-h", 256, 0.5, "the last 4 pixels of each row and column are left out"),
    ],
)
def test_tiles_are_compared_with_those_of_the_training(name, size, mpp, found):
    text = ENCODERS[name].unsuited(size, mpp)
    assert found in text
    assert bool(found) == bool(text)


@pytest.mark.parametrize(
    ("name", "near"),
    [("UNI", "uni"), ("conch", "conch_v1"), ("virchow-2", "virchow2"), ("resnet_18", "resnet18")],
)
def test_a_mistyped_name_is_told_the_nearest(name, near):
    assert nearest_name(name, ["resnet18"]) == f"; did you mean {near}?"


def test_a_name_far_from_all_has_no_nearest():
    assert nearest_name("qqqqq") == ""


def test_the_table_in_the_documentation_is_that_of_the_records():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    assert rows == [row(each) for each in ENCODERS.values()]


def row(encoder) -> str:
    kind, _, number = encoder.paper.partition(":")
    paper = f"[{encoder.paper}](https://arxiv.org/abs/{number})" if kind == "arXiv" else ""
    paper = paper or (f"[doi](https://doi.org/{encoder.paper})" if encoder.paper else "-")
    mpp = ", ".join(f"{each:g}" for each in encoder.mpp) or "?"
    cells = (
        f"[{encoder.name}]({encoder.page})",
        *(str(encoder.width), str(encoder.tile), mpp, encoder.pooling, encoder.parameters or "?"),
        *(encoder.licence or "see page", "yes" if encoder.gated else "no", paper),
    )
    return f"| {' | '.join(cells)} |"
