"""Public data sets that can be downloaded, with their archives, checksums and licences."""

from __future__ import annotations

from dataclasses import dataclass

from detect.files.download import RemoteFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive(RemoteFile):
    """One archive of a publisher."""

    inside: str = "."
    """Folder in the archive that becomes the data set; other content is ignored."""


@dataclass(frozen=True, slots=True)
class Source:
    """Archives that are unpacked into one folder."""

    archives: tuple[Archive, ...]
    limit: int
    """Maximum unpacked size in bytes, well above the actual size, against zip bombs."""
    licence: str


# VOC and COCO are published over plain http, so only the checksums here verify them.
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
_VOC_LICENCE = (
    "The photographs belong to Flickr users, under Flickr's terms of use; "
    "collected for research by the PASCAL VOC challenge."
)
_COCO_LICENCE = (
    "Annotations CC BY 4.0 (COCO Consortium); the photographs belong to Flickr users, each under its own licence."
)
SOURCES: dict[str, Source] = {
    "voc2007": Source(
        archives=(
            Archive(
                url=f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                file="VOCtrainval_06-Nov-2007.tar",
                inside="VOCdevkit/VOC2007",
                size=460_032_000,
                checksum="md5:c52e279531787c972589f7e41ab4ae64",
            ),
            Archive(
                url=f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                file="VOCtest_06-Nov-2007.tar",
                inside="VOCdevkit/VOC2007",
                size=451_020_800,
                checksum="md5:b6e924de25625d8de591ea690078ad9f",
            ),
        ),
        limit=3 * 10**9,
        licence=_VOC_LICENCE,
    ),
    "voc2012": Source(
        archives=(
            Archive(
                url=f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                file="VOCtrainval_11-May-2012.tar",
                inside="VOCdevkit/VOC2012",
                size=1_999_639_040,
                checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        limit=6 * 10**9,
        licence=_VOC_LICENCE,
    ),
    "coco/annotations": Source(
        archives=(
            Archive(
                url=f"{_COCO}/annotations/annotations_trainval2017.zip",
                file="annotations_trainval2017.zip",
                inside="annotations",
                size=252_907_541,
                checksum="md5:f4bbac642086de4f52a3fdda2de5fa2c",
            ),
        ),
        limit=4 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "coco/val2017": Source(
        archives=(
            Archive(
                url=f"{_COCO}/zips/val2017.zip",
                file="val2017.zip",
                inside="val2017",
                size=815_585_330,
                checksum="md5:442b8da7639aecaf257c1dceb8ba8c80",
            ),
        ),
        limit=3 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "coco/train2017": Source(
        archives=(
            Archive(
                url=f"{_COCO}/zips/train2017.zip",
                file="train2017.zip",
                inside="train2017",
                size=19_336_861_798,
                checksum="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
            ),
        ),
        limit=40 * 10**9,
        licence=_COCO_LICENCE,
    ),
    "bccd": Source(
        archives=(
            Archive(  # GitHub builds the archive on request: neither size nor checksum is fixed
                url="https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip",
                file="BCCD_Dataset-master.zip",
                inside="BCCD_Dataset-master/BCCD",
            ),
        ),
        limit=10**8,
        licence="MIT (Shenggan/BCCD_Dataset).",
    ),
}
"""Sources by folder below the root; a name with two parts, such as coco/val2017, is a part of a data set."""
