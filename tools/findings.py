"""What `dataset_tools.py check` finds: the findings, the facts of each image, the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset.table import Table


@dataclass(frozen=True)
class Finding:
    """One thing found: a key of check_report.KINDS, "error" or "warning", a sentence, the image files it is about."""

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

    def shorten(self, path: str) -> str:
        """`path` within the data set's folder; as it is where it lies elsewhere."""
        return Path(path).relative_to(self.root).as_posix() if Path(path).is_relative_to(self.root) else path

    def describe(self, finding: Finding) -> str:
        """The files, the first three by name, and what is said about them."""
        names = [self.shorten(path) for path in finding.files[:3]]
        names += [f"{len(finding.files) - 3:,} more"] if len(finding.files) > 3 else []
        return f"{', '.join(names)}: {finding.text}" if names else finding.text
