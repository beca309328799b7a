"""What `dataset_tools.py check` finds: the kinds of findings, the findings, the facts of each image, the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataset.table import Table

UNREAD = "unread"  # in place of a split: the images of splits whose labels cannot be read


class Kind(NamedTuple):
    """A kind of finding: its title, and what to do about it, in a sentence."""

    title: str
    advice: str


LEAVE_OUT = (
    "Do what is said of each file, or get it anew. Or leave them out of training: set BAD_IMAGES to skip, or "
    "EXCLUDE_LIST to the exclude.txt of this check."
)
LOOK = "Look at the pictures"

KINDS = {  # in the order of the page
    "labels": Kind(
        "Labels that cannot be read",
        "Correct them in the file and line that is named, or set the constant that is. Training stops there, too.",
    ),
    "missing": Kind(
        "Images that do not exist",
        "Put the files where the labels say, or correct their paths, or remove their lines. Training stops there, too.",
    ),
    "unreadable": Kind("Images that cannot be read", LEAVE_OUT),
    "damaged": Kind("Images of which a part is lost", LEAVE_OUT),
    "type_not_read": Kind(
        "Files that are not read as images",
        "Save those that belong to the data set as JPEG or PNG, with the usual ending, or install what is named.",
    ),
    "reading": Kind(
        "Noticed while the labels were read",
        "Nothing, if this is what you meant; else correct the paths or labels that are named.",
    ),
    "classes": Kind(
        "Classes that look wrong", "Set or correct what each finding says. Names that are meant so may stay."
    ),
    "leak": Kind(
        "The same picture in several splits",
        "Set EXCLUDE_LIST to the exclude.txt of this check: the picture stays for testing, or else for validation, and "
        "is not trained on.",
    ),
    "source_leak": Kind(
        "One source in several splits",
        "Keep all images of a source in one split: `python dataset_tools.py split` does it, with GROUP_PATTERN.",
    ),
    "label_conflict": Kind("The same picture with different labels", f"{LOOK}, and correct the labels that are wrong."),
    "duplicate": Kind(
        "Duplicates",
        "Nothing has to be done. With EXCLUDE_LIST set to the exclude.txt of this check, one of each is trained on.",
    ),
    "near_duplicate": Kind(
        "Near duplicates", f"{LOOK}; where they are copies, set EXCLUDE_LIST to the exclude.txt of this check."
    ),
    "decoder_remark": Kind(
        "Images that a decoder complains of", f"{LOOK}: those that are right may stay; save the others anew."
    ),
    "wrong_extension": Kind(
        "Another type of image than the file name says",
        "Nothing has to be done, since the content counts. Other programs may want the right ending.",
    ),
    "small": Kind(
        "Very small images",
        f"{LOOK}, and list in EXCLUDE_LIST those that show nothing. CHECK_SMALL_SIDE sets what is small.",
    ),
    "blank": Kind(
        "Pictures of one colour", f"{LOOK}: get those anew that were not saved in full, or list them in EXCLUDE_LIST."
    ),
    "class_in_one_split": Kind(
        "Classes in one split only",
        "Divide the images anew with `python dataset_tools.py split`, or add images to the other splits.",
    ),
    "no_labels": Kind(
        "Images without labels",
        "Nothing, if they show none of the classes; else label them (docs/data_formats.md says how).",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing found: a key of KINDS, "error" or "warning", a sentence, the image files it is about."""

    kind: str
    severity: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageFacts:
    """What one look at an image file tells. One with a `problem` cannot be read, and has no size nor hashes."""

    problem: str = ""
    file_type: str = ""  # PIL's name for it: JPEG, PNG
    mode: str = ""  # PIL's name for its pixels: RGB, L, CMYK
    width: int = 0  # pixels, upright
    height: int = 0
    digest: bytes = b""  # equal for equal pixels, whatever the file's type and metadata
    near_hash: bytes = b""  # 256 bits, of which few change with quality or size; empty for a picture of one colour
    lost: str = ""  # what says that a part of the picture is lost
    remark: str = ""  # what the decoder said of it
    thumbnail: bytes = b""  # a small JPEG, where one was asked for


@dataclass(frozen=True)
class Result:
    """What a check found: the table of each split, the facts of each image file, and the findings."""

    root: Path
    format: str
    tables: dict[str, Table]
    facts: dict[str, ImageFacts]
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    @property
    def splits(self) -> dict[str, Table]:
        """The tables of the splits that could be read."""
        return {split: table for split, table in self.tables.items() if split != UNREAD}

    def list_kinds(self) -> dict[tuple[str, str], list[Finding]]:
        """{(severity, kind): its findings}, errors first, kinds in the order of KINDS."""
        found: dict[tuple[str, str], list[Finding]] = {
            (severity, kind): [] for severity in ("error", "warning") for kind in KINDS
        }
        for finding in self.findings:
            found[finding.severity, finding.kind].append(finding)
        return {key: findings for key, findings in found.items() if findings}

    def shorten(self, path: str) -> str:
        """`path` within the data set's folder; as it is where it lies elsewhere."""
        return Path(path).relative_to(self.root).as_posix() if Path(path).is_relative_to(self.root) else path

    def describe(self, finding: Finding) -> str:
        """The files, the first three by name, and what is said about them."""
        names = [self.shorten(path) for path in finding.files[:3]]
        names += [f"{len(finding.files) - 3:,} more"] if len(finding.files) > 3 else []
        return f"{', '.join(names)}: {finding.text}" if names else finding.text
