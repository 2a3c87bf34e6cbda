"""Drawn tiles of DICOM slides as Microscopy Bulk Simple Annotations (PS3.3, A.87), for DICOM viewers.

Coordinates are pixels of the total pixel matrix of the slide's finest level, (x, y) from the top left corner
of its first pixel: the level-0 pixels of the whole slide. An annotation names the files of its slide, so only
slides that are DICOM can have one.
"""

from __future__ import annotations

import json
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from wsi_ats.errors import ArtifactError, SlideError
from wsi_ats.files import atomic
from wsi_ats.results.exports.coordinates import tile_numbers
from wsi_ats.results.exports.format import Format
from wsi_ats.results.scores import ScoredSlide
from wsi_ats.slides.dicom import finest_level, is_dicom

# Names that identify the annotations of the same scores in every export; never change it.
_NAMESPACE = uuid.UUID("3a2a6f0e-52a1-5c0b-8a6d-0d1a7b9f4c11")


def write_dicom(folder: Path, slide: ScoredSlide) -> list[Path]:
    """Write ``<slide_id>.dcm``: a rectangle for each distinct tile, with its numbers as measurements.

    Raises
    ------
    ArtifactError
        When the slide is gone, or has changed since it was scored.
    SlideError
        When it is not DICOM, or its header lacks what an annotation must repeat.
    """
    selection = slide.selection()
    place = slide.ref().path
    path = Path(place)
    if not is_dicom(path):
        raise SlideError(
            place,
            "its tiles cannot be exported to dicom, because the slide is not DICOM: an annotation refers to "
            "the files and the patient of its slide; use another format, such as qupath or geojson",
        )
    header = finest_level(path)
    found = (int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows))
    if found != (selection.grid.width, selection.grid.height):
        raise ArtifactError(
            f"{slide.id} was scored as {selection.grid.width} x {selection.grid.height} pixels, but its "
            f"finest level in {path.parent} has {found[0]} x {found[1]}; score it again"
        )
    try:
        annotations = _annotations(slide, header)
    except AttributeError as error:
        raise SlideError(
            place, f"its header lacks what an annotation must repeat: {error}; have it written again"
        ) from error
    target = folder / f"{slide.id}.dcm"
    with atomic(target) as temporary:
        annotations.save_as(temporary)
    return [target]


def _annotations(slide: ScoredSlide, header: Any) -> Any:
    import highdicom as hd

    numbers = tile_numbers(slide.selection())
    x, y, width, height = (numbers.pop(name).astype(np.float32) for name in ("x", "y", "width", "height"))
    right, bottom = x + width, y + height
    corners = np.stack([[x, y], [right, y], [right, bottom], [x, bottom]]).transpose(2, 0, 1)
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    unit = hd.sr.CodedConcept("1", "UCUM", "no units")
    group = hd.ann.AnnotationGroup(
        number=1,
        uid=_uid(hd, slide, "group"),
        label="Sampled tiles",
        annotated_property_category=tissue,
        annotated_property_type=tissue,
        graphic_type=hd.ann.GraphicTypeValues.RECTANGLE,
        graphic_data=list(corners),
        algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="wsi_ats",
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
            version=str(slide.row["model_digest"]),
        ),
        measurements=[
            # Codes have at most 16 characters, and meanings 64.
            hd.ann.Measurements(hd.sr.CodedConcept(f"number_{i}", "99WSIATS", name[:64]), values, unit)
            for i, (name, values) in enumerate(numbers.items())
        ],
    )
    return hd.ann.MicroscopyBulkSimpleAnnotations(
        source_images=[header],
        annotation_coordinate_type=hd.ann.AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=[group],
        series_instance_uid=_uid(hd, slide, "series"),
        series_number=1,
        sop_instance_uid=_uid(hd, slide, "instance"),
        instance_number=1,
        manufacturer="wsi_ats",
        manufacturer_model_name="wsi_ats",
        software_versions=version("wsi-ats"),
        device_serial_number="0",
    )


def _uid(hd: Any, slide: ScoredSlide, part: str) -> Any:
    name = json.dumps([slide.id, slide.row["model_digest"], slide.row["seed"], part])
    return hd.UID.from_uuid(str(uuid.uuid5(_NAMESPACE, name)))


FORMAT = Format(
    "dicom",
    programs="viewers of DICOM slides, such as Slim",
    contents="*.dcm, Microscopy Bulk Simple Annotations; only for slides that are DICOM",
    slide=write_dicom,
    packages=("highdicom",),
    extra="dicom",
)
