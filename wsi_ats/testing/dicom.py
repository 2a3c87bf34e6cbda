"""Write small DICOM files with pydicom, which OpenSlide can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

from wsi_ats.slides import jpeg

SIDE = 64


def write_dicom(
    path: Path,
    series: str,
    pixels: NDArray[np.uint8],
    *,
    kind: str = VLWholeSlideMicroscopyImageStorage,
    flavour: str | None = "VOLUME",
    mpp: float = 0.5,
) -> Path:
    """Write one level of a whole-slide image, or another picture, in tiles of 64 pixels.

    Parameters
    ----------
    path
        The file.
    series
        ``SeriesInstanceUID``.
    pixels
        Shape (h, w, 3), sides multiples of 64.
    kind
        SOP class.
    flavour
        Third word of ``ImageType``; omitted if ``None``.
    mpp
        Micrometres per pixel.
    """
    height, width = pixels.shape[:2]
    frames = [
        jpeg.encode(pixels[y : y + SIDE, x : x + SIDE])
        for y in range(0, height, SIDE)
        for x in range(0, width, SIDE)
    ]
    image, measures, shared, origin = Dataset(), Dataset(), Dataset(), Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = UID(kind)
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(
        entropy_srcs=[series, path.name]  # the same file each time
    )
    image.SeriesInstanceUID = series
    image.StudyInstanceUID = image.FrameOfReferenceUID = series + ".1"
    image.Modality, image.ContainerIdentifier = "SM", "glass"
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(image, name, "")
    image.StudyID = image.StudyDate = image.StudyTime = ""
    image.ImageType = ["ORIGINAL", "PRIMARY", *([] if flavour is None else [flavour, "NONE"])]
    image.SamplesPerPixel, image.PlanarConfiguration = 3, 0
    image.PhotometricInterpretation = "YBR_FULL_422"
    image.Rows = image.Columns = SIDE
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.NumberOfFrames, image.DimensionOrganizationType = len(frames), "TILED_FULL"
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.TotalPixelMatrixFocalPlanes = image.NumberOfOpticalPaths = 1
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    image.TotalPixelMatrixOriginSequence = [origin]
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared.PixelMeasuresSequence = [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PixelData = encapsulate(frames)
    image["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path
