"""All formats by name; a new one is a file of this folder and a name here."""

from __future__ import annotations

from wsi_ats.results.exports import (
    anndata,
    asap,
    clam,
    dicom,
    geojson,
    omero,
    pictures,
    png,
    qupath,
    spatialdata,
    stamp,
    tables,
    torchmil,
    trident,
)
from wsi_ats.results.exports.format import Format

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        *(tables.CSV, tables.PARQUET),
        *(qupath.FORMAT, asap.FORMAT, omero.FORMAT, dicom.FORMAT, geojson.FORMAT, png.FORMAT),
        pictures.FORMAT,
        *(clam.FORMAT, trident.FORMAT, torchmil.FORMAT, stamp.FORMAT),
        *(anndata.FORMAT, spatialdata.FORMAT),
    )
}
"""The formats, in the order of the list that users see."""
