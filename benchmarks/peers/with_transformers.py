"""The Hugging Face Trainer for so many minutes, on a network of timm, as its guide to image classification has it.

    python -m benchmarks.peers.with_transformers train|test TASK.json

https://huggingface.co/docs/transformers/tasks/image_classification: AdamW, a rate of 5e-5 with a linear warm-up over a
tenth of the steps and a linear fall to 0, a validation an epoch and the best by its loss in the end; the transforms of
the network's image processor (timm's crops of 8 to 100 % of the area, mirrored, with other colours; the middle when it
predicts); problem_type "multi_label_classification", which is BCEWithLogitsLoss. Different from there: the batch size,
and the number of epochs, which need not be whole (pace.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers  # pyright: ignore[reportMissingImports]  # requirements-benchmarks.txt
from PIL import Image
from torch import Tensor

from benchmarks.peers import pace
from benchmarks.peers.pace import Pace
from benchmarks.peers.plain import Images
from benchmarks.peers.task import Task, load_task, make_timm_network, read_targets
from trainer import run_files


def main(argv: list[str]) -> None:
    verb, path = argv
    transformers.utils.logging.disable_progress_bar()
    {"train": train, "test": test}[verb](load_task(path))


def train(task: Task) -> None:
    """Find out how many epochs the minutes hold, and train for so many."""
    found = measure_pace(task)
    epochs = pace.count_epochs(60 * task.minutes, found, len(task.train), len(task.val))
    print(f"transformers: {len(task.train)} training images, {epochs:.2f} epochs", flush=True)
    timer = Timer(len(task.train), task.batch_size)
    trainer = make_trainer(
        task,
        callbacks=[timer],
        num_train_epochs=epochs,
        warmup_steps=0.1,  # a share
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    trainer.save_model(task.checkpoint)
    run_files.write_log(task.log, timer.history)


def test(task: Task) -> None:
    """Predict the test and the validation images by the saved model."""
    model = transformers.TimmWrapperForImageClassification.from_pretrained(task.checkpoint)
    print(f"transformers: {len(task.test)} test images", flush=True)
    trainer = transformers.Trainer(model, make_arguments(task))
    transform = make_processor(task).val_transforms
    for paths, file in ((task.test, task.probabilities), (task.val, task.val_probabilities)):
        logits = trainer.predict(Examples(paths, transform)).predictions  # pyright: ignore[reportArgumentType]
        np.save(file, torch.from_numpy(logits).sigmoid().numpy())


def measure_pace(task: Task) -> Pace:
    """Seconds an image, by a few steps of another trainer and a few predictions."""
    timer = StepTimer()
    trainer = make_trainer(task, callbacks=[timer], max_steps=pace.NUM_STEPS + 1, save_strategy="no")
    trainer.train()
    seconds = (timer.ends[-1] - timer.ends[0]) / (len(timer.ends) - 1)
    paths = task.val[: pace.NUM_PREDICTED]
    start = time.perf_counter()
    trainer.predict(Examples(paths, make_processor(task).val_transforms))  # pyright: ignore[reportArgumentType]
    return Pace(
        unfrozen=seconds / min(task.batch_size, len(task.train)),
        validation=(time.perf_counter() - start) / len(paths),
    )


def make_trainer(task: Task, callbacks: list[Any], **arguments: Any) -> Any:
    """A trainer with a new model; the same for the same task."""
    transformers.set_seed(task.seed)
    processor = make_processor(task)
    train, val = (
        Examples(paths, transform, [read_targets(path, task.num_classes) for path in paths])
        for paths, transform in ((task.train, processor.train_transforms), (task.val, processor.val_transforms))
    )
    return transformers.Trainer(
        make_model(task),
        make_arguments(task, **arguments),
        train_dataset=train,  # pyright: ignore[reportArgumentType]
        eval_dataset=val,  # pyright: ignore[reportArgumentType]
        callbacks=callbacks,
    )


def make_arguments(task: Task, **more: Any) -> Any:
    return transformers.TrainingArguments(
        output_dir=str(Path(task.folder) / "trainer"),
        learning_rate=task.transformers_lr,
        per_device_train_batch_size=task.batch_size,
        per_device_eval_batch_size=task.batch_size,
        seed=task.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        **more,
    )


def make_model(task: Task) -> Any:
    """The network with timm's own pooling and a new linear classifier."""
    network = make_timm_network(task)
    model = transformers.TimmWrapperForImageClassification(
        transformers.TimmWrapperConfig(
            architecture=network.name, num_labels=task.num_classes, problem_type="multi_label_classification"
        )
    )
    missing, unexpected = model.timm_model.load_state_dict(network.state, strict=False)
    if unexpected or any("classifier" not in key for key in missing):
        raise RuntimeError(f"timm's {network.name} is not the same network: {missing}, {unexpected}")
    return model


def make_processor(task: Task) -> Any:
    """What TimmWrapper makes of timm's configuration of the network; the size and the colours are the task's."""
    import timm

    network = make_timm_network(task)
    configuration = timm.get_pretrained_cfg(network.name)
    assert configuration
    size = (3, task.image_size, task.image_size)
    changes = {"input_size": size, "mean": network.mean, "std": network.std}
    return transformers.models.timm_wrapper.TimmWrapperImageProcessor(
        {**configuration.to_dict(), **changes}, architecture=network.name
    )


class Examples(Images):
    """Image files as the Trainer takes them, with their targets where there are some."""

    def __init__(
        self,
        paths: list[str],
        transform: Callable[[Image.Image], Tensor],
        targets: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(paths, transform)
        self.targets = targets

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = {"pixel_values": super().__getitem__(index)}
        if self.targets is not None:
            example["labels"] = torch.tensor(self.targets[index])
        return example


class StepTimer(transformers.TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class Timer(transformers.TrainerCallback):
    """Seconds and images of each epoch's training pass."""

    def __init__(self, num_train: int, batch_size: int) -> None:
        self.num_train, self.batch_size = num_train, batch_size
        self.history: list[dict[str, Any]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start, self.first_step = time.perf_counter(), state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = time.perf_counter() - self.start
        images = min(self.num_train, (state.global_step - self.first_step) * self.batch_size)
        row = {"epoch": len(self.history) + 1, "frozen": False, "seconds": seconds, "images": images}
        self.history.append(row)


if __name__ == "__main__":
    main(sys.argv[1:])
