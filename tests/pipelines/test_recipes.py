"""The recipes for public collections, on synthetic slides in files laid out as theirs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest
import torch
from annotation_files import asap, rectangle
from conftest import SETTINGS, table
from documented import Command, blocks, carry_out, typed

from wsi_ats.models.checkpoints import save_model
from wsi_ats.models.kinds import model_for
from wsi_ats.tasks.targets import Target

pytest.importorskip("pandas", reason="the recipes need pandas")


def lay(desk: Path, paths: Sequence[str]) -> None:
    """Put a slide at each path."""
    for path, slide in zip(paths, cycle(sorted((desk / "slides").iterdir())), strict=False):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).symlink_to(slide.resolve())


def have_trained(task: str, labels: Sequence[str]) -> None:
    """Put a model in the place of the one that a recipe trains."""
    settings, target = SETTINGS.with_values([f"model.task={task}"]), Target.of(task, labels)
    torch.manual_seed(0)
    shutil.rmtree("run")
    Path("run").mkdir()
    save_model(Path("run"), model_for(settings, target), settings, target)


def follow(page: str, run) -> None:
    """Run the scripts of a page, then its commands; those that train only check what they are given."""
    for code in blocks(page, "py"):
        exec(compile(code, page, "exec"), {})  # the pages are ours
    for command in typed(page):
        if command.words[1] == "crossval":
            words = [*command.words[1:], "--config", "ats.toml", "--dry-run"]
            run(*words[: words.index("--folds") + 1], "3", *words[words.index("--folds") + 2 :])
        elif command.words[:2] == ("wsi-ats", "score"):
            run(*command.words[1:])
        else:
            carry_out(Command(command.words), run)


def rows(path: str, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row[name] for name in columns) for row in table(Path(path))]


def test_camelyon(desk, run):
    kinds = ("normal", "tumor")
    lay(desk, [f"CAMELYON16/training/{kind}/{kind}_{i:03d}.tif" for kind in kinds for i in range(1, 4)])
    lay(desk, [f"CAMELYON16/testing/images/test_{i:03d}.tif" for i in (1, 2)])
    Path("CAMELYON16/testing/reference.csv").write_text(
        "test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n"
    )
    Path("CAMELYON16/testing/lesion_annotations").mkdir()
    corners = {"_0": (400, 300, 500, 400), "_1": (1000, 500, 200, 200), "_2": (500, 400, 64, 64)}
    areas = [("Polygon", group, rectangle(*each)) for group, each in corners.items()]
    Path("CAMELYON16/testing/lesion_annotations/test_001.xml").write_text(asap(areas))
    nodes = [f"patient_{patient:03d}_node_{node}.tif" for patient in range(12) for node in range(2)]
    nodes = nodes[:4] + nodes[4::2]  # two of some patients, one of the others
    lay(desk, [f"CAMELYON17/images/{name}" for name in nodes])
    stages = ["patient,stage"]
    for name in nodes:
        stages += [f"{name[:11]}.zip,pN0"] * ("node_0" in name)
        stages.append(f"{name},{('negative', 'itc', 'negative', 'micro')[int(name[8:11]) % 4]}")
    Path("CAMELYON17/stages.csv").write_text("\n".join(stages) + "\n")
    have_trained("classification", kinds)
    follow("camelyon", run)
    assert rows("slides.csv", "slide_id", "label", "split") == [
        ("test_001", "tumor", "test"),
        ("test_002", "normal", "test"),
        *((f"{kind}_{i:03d}", kind, "") for kind in kinds for i in range(1, 4)),
    ]
    assert rows("slides17.csv", "slide_id", "case_id", "label")[:3] == [
        ("patient_000_node_0", "patient_000", "normal"),
        ("patient_000_node_1", "patient_000", "normal"),
        ("patient_001_node_0", "patient_001", "tumor"),
    ]
    located = rows("evaluation/localisation.csv", "slide_id", "areas")
    assert [name for name, areas in located if areas not in {"", "0"}] == ["test_001"]
    assert len(table(Path("evaluation17/evaluated.csv"))) == len(nodes)


def test_tcga(desk, run):
    head = "File ID\tFile Name\tData Category\tData Type\tProject ID\tCase ID\tSample ID\tSample Type"
    lines, wanted = [head], []
    for i in range(12):
        case, project = f"TCGA-{'05' if i % 2 else '22'}-42{i // 2:02d}", ("TCGA-LUAD", "TCGA-LUSC")[i % 2]
        for kind in ("01Z-00-DX1", "01A-01-TS1"):
            name = f"{case}-{kind}.d4ff32cd-38cf-40ea-8213-45c2b100ac{i:02d}"
            lay(desk, [f"TCGA/file-{i:02d}-{kind[-3:]}/{name}.svs"])
            line = (f"file-{i:02d}-{kind[-3:]}", f"{name}.svs", "Biospecimen", "Slide Image", project, case)
            lines.append("\t".join((*line, f"{case}-{kind[:3]}", "Primary Tumor")))
            wanted += [(name, case, project[5:])] * ("DX" in kind)
    Path("TCGA/gdc_sample_sheet.tsv").write_text("\n".join(lines) + "\n")
    follow("tcga", run)
    assert rows("slides.csv", "slide_id", "case_id", "label") == wanted


def test_panda(desk, run):
    names = [f"{i:032x}" for i in range(20)]
    lay(desk, [f"PANDA/train_images/{name}.tiff" for name in names])
    lines = [f"{name},{('karolinska', 'radboud')[i % 2]},{i % 6},3+4" for i, name in enumerate(names)]
    Path("PANDA/train.csv").write_text(
        "\n".join(["image_id,data_provider,isup_grade,gleason_score", *lines]) + "\n"
    )
    have_trained("regression", list("012345"))
    follow("panda", run)
    tests = [name for name, split in rows("slides.csv", "slide_id", "split") if split == "test"]
    assert len(tests) == 4
    assert {provider for _, provider in rows("test.csv", "slide_id", "data_provider")} == {
        "karolinska",
        "radboud",
    }
    assert [name for name, _ in rows("scores/predictions.csv", "slide_id", "status")] == tests


def test_cptac(desk, run):
    for number, folder in enumerate(("LUAD", "LSCC")):
        lines = ["Case_ID,Slide_ID,Specimen_Type,Embedding_Medium"]
        for i in range(4):
            slide = f"C3L-{number}000{i // 2}-2{i}"
            lay(desk, [f"CPTAC/{folder}/{slide}.svs"])
            lines.append(f"{slide[:9]},{slide},{('tumor_tissue', 'normal_tissue')[i == 3]},FFPE")
        Path(f"CPTAC/TCIA_CPTAC_{folder}_Pathology_Data_Table.csv").write_text("\n".join(lines) + "\n")
    have_trained("classification", ["LUAD", "LUSC"])
    follow("cptac", run)
    assert rows("slides.csv", "slide_id", "case_id", "label") == [
        *((f"C3L-0000{i // 2}-2{i}", f"C3L-0000{i // 2}", "LUAD") for i in range(3)),
        *((f"C3L-1000{i // 2}-2{i}", f"C3L-1000{i // 2}", "LUSC") for i in range(3)),
    ]
    assert len(table(Path("evaluation/evaluated.csv"))) == 4  # cases
