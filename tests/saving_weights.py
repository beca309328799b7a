"""training.py in float64, with every process's own weights written down at each epoch's end: LOCAL_ROOT/rank_<k>.pt."""

from __future__ import annotations

import torch
from float64 import float64

import config
import distributed
import training
from trainer import records
from trainer.run import Run


def main(arguments: list[str]) -> None:
    save_last, kept = records.save_last, []

    def save(run: Run) -> None:
        save_last(run)
        kept.append({name: value.clone() for name, value in run.trainer.model.state_dict().items()})
        torch.save(kept, config.LOCAL_ROOT / f"rank_{distributed.rank()}.pt")

    records.save_last = save
    with float64():
        training.main(arguments)
