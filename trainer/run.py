"""One run of training.py in one object: its data, what it trains, its files, how far it is, and who looks on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import config
from trainer.build import Trainer
from trainer.doctor import Doctor
from trainer.interruption import Interruption
from trainer.loggers import Loggers
from trainer.run_files import RunFiles
from trainer.run_state import RunState
from trainer.training_curves import CurvesFile
from trainer.training_data import Data, ImageCaches, Stage


@dataclass
class Run:
    """What the functions of training.py and trainer/ work on."""

    data: Data  # the labelled images, and how they are split
    trainer: Trainer  # model, objective, optimizer and the rest of a step
    caches: ImageCaches  # decoded images
    files: RunFiles  # where everything is written
    state: RunState  # how far the run is
    resumed: dict[str, Any] | None  # what this process resumes in the middle of an epoch; None: a fresh run
    doctor: Doctor  # warns of what is probably a mistake
    logger: Loggers  # TensorBoard and other trackers
    curves: CurvesFile  # the picture of the run's curves
    interruption: Interruption  # whether a signal came
    stage: Stage | None = None  # what the present epoch runs on; None before the first

    @property
    def has_stalled(self) -> bool:
        """Whether early stopping ends the run."""
        return config.EARLY_STOPPING_ENABLED and self.state.validations_without_gain >= config.EARLY_STOPPING_PATIENCE
