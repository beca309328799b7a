"""training.py in float64, with every process's own weights written down at each epoch's end: LOCAL_ROOT/rank_<k>.pt."""

from __future__ import annotations

from typing import Any

import torch
from float64 import float64

import config
import distributed
import training
import training_records


def main(arguments: list[str]) -> None:
    save_last, kept = training_records.save_last, []

    def save(files: Any, engine: Any, *others: Any) -> None:
        save_last(files, engine, *others)
        kept.append({name: value.clone() for name, value in engine.model.state_dict().items()})
        torch.save(kept, config.LOCAL_ROOT / f"rank_{distributed.rank()}.pt")

    training_records.save_last = save
    with float64():
        training.main(arguments)
