"""testing.py on two machines, of which only the first has what images are compared with (models/novelty.py)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import distributed
import predictor
import testing
from models.novelty import Reference


def main(arguments: list[str]) -> None:
    find_reference = predictor.find_reference

    def find(checkpoint: Path, metadata: Mapping[str, Any]) -> Reference | None:
        return find_reference(checkpoint, metadata) if distributed.is_first() else None

    predictor.find_reference = find
    distributed.PATIENCE_WITH_FIRST = timedelta(minutes=2)  # processes that wait for each other in vain fail
    testing.main(arguments)
