"""Warns of the usual mistakes in a training run: `Doctor` looks at its data, first step, epochs and validations.

    doctor = Doctor()
    doctor.look_at_data(train, val)                          # once, before the first epoch, and so are the next three
    doctor.look_at_labels(train, val)
    doctor.look_at_freezing(is_frozen=True, unfreeze_epoch=4, num_epochs=10)
    doctor.look_at_sizes(num_train=900, num_val=100, batch_size=32)
    doctor.watch(model, optimizer, average)                  # before each epoch
    doctor.look_at_first_step(network=network, batch=batch, logits=logits, ...)     # once
    doctor.look_at_epoch(model=model, optimizer=optimizer, average=average, ...)    # after each epoch
    doctor.look_at_loading(waiting_share=0.6, seconds=300.0, ...)                   # after each epoch that read images
    doctor.look_at_validation(probabilities=probabilities, targets=targets, ...)    # after each validation
    doctor.look_at_end(num_taken=290)                        # once, after the last epoch

A finding is one sentence: what is probably wrong, and what to change. It is printed once in a run, and kept in
`findings`. The limits lie far beyond what healthy runs reach, because a false alarm costs more than a missed mistake.
The doctor changes neither the run's random numbers nor a module. Only the first step waits for the GPU because of it.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from io import BufferedReader
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

import metrics
import thresholds
import utils
from dataset.batches import Batch
from dataset.class_checks import judge_classes
from dataset.class_names import quote_names, show_names
from dataset.decoding import stamp_files
from dataset.table import Table
from dataset.tar_shards import split_member
from losses import Objective, reduce_loss
from trainer.optimizers import MovingAverage
from utils import InputError

PARTS = {"backbone", "head"}  # the parts of a model
# Numbers of healthy runs in the comments were measured with MobileNetV2 on drawn pictures and EfficientNet-Lite0 on
# photographs.
BLOCK_BYTES = 4096  # read from the middle of files that have the same size; different pictures differ there
BLOWN_UP_LOSS = 3.0  # largest cross-entropy of an entry at the first step; a model that knows nothing has 0.69
LONGEST_STEP = 10.0  # longest step of the head by SGD, see `_look_at_gradient`; 4.4 trained well, 21 lost 1/7 of the F1
STRONGEST_DECAY = 3.0  # largest pull of the decay, times the loss's gradient; 1.5 lost 1/7 of the F1, 0.01 is usual
LOSS_RISE = 3.0  # largest mean loss of two epochs, times that of the first step
LEAST_STEPS = 100  # steps before LOSS_RISE counts: without warm-up ml_decoder's loss may be sevenfold for 10 steps
SMALLEST_RATE = 1e-6  # times a group's initial rate; a cosine over 1000 epochs has 2.5 times this in its last epoch
LONGEST_WAIT = 0.5  # share of an epoch spent waiting for images; without waiting the epoch would be twice as fast
LONGEST_WAIT_OF_GPU = 0.2  # and where a GPU waits, which is paid for by the hour: without it a quarter faster
LEAST_LOSS_OF_TIME = 600.0  # seconds that the rest of the run would wait; less is not worth a word
LEAST_IMAGES = 50  # validation images; half of fewer is known to 0.14 at best, and the best threshold may be anywhere
LEAST_POSITIVES = 20  # images with a class, before that class is judged
PATIENCE = 3  # validations in a row with a symptom; a model that has just begun may look like a broken one
SMALLEST_SPREAD = 0.01  # largest minus smallest probability of a class over all images; one class must reach it
EDGE = 1e-3  # below it and above 1 - it, bfloat16 and int8 models cannot tell scores from 0 and 1
RESAMPLES = 200  # draws of images without a copy, which F1 of the images with a copy is compared with
SAMPLED_ENTRIES = 1000  # entries of each parameter that are compared to see whether it moved


class Doctor:
    """Looks at a run at given moments, and says what is probably a mistake and what to change.

    `findings` are what was said, {name: sentence}. Only rank 0 needs a doctor: it exchanges nothing with other
    processes.
    """

    STATEFUL = ("findings", "streaks", "first_loss", "num_steps", "epochs_above")

    def __init__(self, say: Callable[[str], None] = utils.warn) -> None:
        self.say = say
        self.findings: dict[str, str] = {}
        self.streaks: dict[str, int] = {}  # validations in a row that showed a symptom
        self.first_loss: float | None = None
        self.num_steps = 0
        self.epochs_above = 0  # epochs in a row whose loss was far above the first
        self.multiple: float | None = None  # the first step's loss over the mean loss; None unless that step is next
        self.copied: NDArray[np.bool_] | None = None  # (N,) which validation images have a copy in training
        self.moving: set[str] = set()  # those of backbone, head and average that were seen to move
        self.rates: list[float] = []  # of each group, before the epoch
        self.before: dict[str, Tensor] = {}  # sampled weights of the model, before the epoch
        self.average_before: dict[str, Tensor] = {}  # the same of the average
        self.has_loaded = False  # whether an epoch has read images

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from, as plain Python values."""
        copied = None if self.copied is None else self.copied.tolist()
        return {"copied": copied, **{name: getattr(self, name) for name in self.STATEFUL}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in self.STATEFUL:
            setattr(self, name, state[name])
        self.copied = None if state["copied"] is None else np.array(state["copied"])

    def note(self, name: str, text: str) -> None:
        """Say `text`, and keep it as the finding `name`, unless `name` was found before."""
        if name not in self.findings:
            self.findings[name] = text
            self.say(text)

    # ---- the data ----

    def look_at_data(self, train: Table, val: Table) -> None:
        """Look for files and sources that training and validation share. Raises InputError for an unreadable file."""
        twins = find_shared_images(train.paths, val.paths)
        self.copied = np.array([twin is not None for twin in twins])
        if self.copied.any():
            row = int(self.copied.argmax())
            self.note(
                "copies",
                f"{self.copied.sum()} of {len(val)} validation images are copies of training images, such as "
                f"{val.paths[row]} of {twins[row]}, so that validation rates memory: `python dataset_tools.py check` "
                "lists what to leave out (EXCLUDE_LIST), near copies too",
            )
        shared = (set(train.groups or ()) & set(val.groups or ())) - {""}  # "": the source is not known
        if shared:
            self.note(
                "sources",
                f"{len(shared)} source(s), such as {min(shared)}, have images both in training and in validation, "
                "which are then no new ones: `python dataset_tools.py split` keeps the sources of GROUP_PATTERN whole",
            )

    def look_at_labels(self, train: Table, val: Table, has_teachers: bool = False) -> None:
        """Look for classes and images that cannot be learned or measured, by their labels alone.

        With `has_teachers`, training learns from others' probabilities, and its labels are not looked at.
        """
        splits = {"validation": val} if has_teachers else {"training": train, "validation": val}
        for name, table in splits.items():
            num_unknown = int((table.targets < 0).all(axis=1).sum())
            if num_unknown:
                self.note(
                    f"{name} images without a known label",
                    f"no label of {num_unknown} of {len(table)} {name} images is known, present or absent, so that "
                    f"they {'teach' if name == 'training' else 'measure'} nothing: label them, or leave them out "
                    "(EXCLUDE_LIST)",
                )
        if has_teachers:
            return
        for problem in judge_classes({"train": train}):
            self.note(problem.kind, problem.text)
        has_positive = (train.targets == 1).any(axis=0)
        unmeasured = has_positive & ~(val.targets == 1).any(axis=0)
        if unmeasured[has_positive].all():
            self.note(
                "no class in both splits",
                "no class has a positive both in training and in validation, so that F1 says nothing of what is "
                "learned, and the epoch and the threshold are chosen by chance: each class needs two images or more, "
                "and VAL_SPLIT a share that takes some of them",
            )
        elif unmeasured.any():
            names = quote_names([train.classes[c] for c in np.flatnonzero(unmeasured)])
            self.note(
                "classes not measured",
                f"{unmeasured.sum():,} class(es) that are trained have no positive in the validation split, which "
                f"does not measure them: {names}",
            )

    def look_at_freezing(self, is_frozen: bool, unfreeze_epoch: int, num_epochs: int) -> None:
        """Look whether a backbone that is frozen at the start is trained before the run ends; epoch 0: it never is."""
        if is_frozen and unfreeze_epoch > num_epochs:
            self.note(
                "backbone never trained",
                f"the backbone stays frozen: it would train from epoch {unfreeze_epoch} on (UNFREEZE_BACKBONE_EPOCH), "
                f"after the last one (NUM_EPOCHS {num_epochs}); set one of them, or 0 for a backbone that never trains",
            )

    def look_at_sizes(self, num_train: int, num_val: int, batch_size: int, val_is_drawn: bool = True) -> None:
        """Look whether the splits are large enough for the largest `batch_size`, and to choose an epoch by.

        `val_is_drawn` says whether the validation images are VAL_SPLIT of the training images, or a split of their own.
        """
        if batch_size > num_train:
            self.note(
                "batch larger than the split",
                f"a batch of {batch_size} is larger than the training split: an epoch is a single step of all "
                f"{num_train} images; lower TRAIN_BATCH_SIZE or UNFROZEN_BATCH_SIZE, or train for more epochs",
            )
        if num_val < LEAST_IMAGES:
            # half the width of the 95 % interval of a share of 1/2, by the normal distribution
            error = 1.96 * 0.5 / math.sqrt(num_val)
            advice = "more validation images would tell more"
            if val_is_drawn:
                advice = "raise VAL_SPLIT, set FOLDS = 5, or give the data set a val split of its own"
            self.note(
                "few validation images",
                f"{num_val} validation images are few: a share of them such as 0.5 is known to ± {error:.2f} only "
                f"(95 %), so that the epoch and the threshold are chosen by noise as well: {advice}",
            )

    # ---- training ----

    def look_at_first_step(
        self,
        *,
        network: nn.Module,
        batch: Batch,
        logits: Tensor,
        objective: Objective,
        optimizer: Optimizer,
        batch_size: int,
    ) -> None:
        """Look at the first logits of the run, and at the length of the first step when `optimizer` takes it.

        `network`, a model or its head, not wrapped, made `logits` (B, C) of `batch`: the first micro-batch of a step
        of `batch_size` images. Gradients have to be unscaled when the optimizer's `step` is called.
        """
        images, targets, weights = batch
        with torch.no_grad():
            entries, _ = copy.deepcopy(objective).train().weigh_entries(logits, targets)
            mean = reduce_loss(entries, targets, weights, "mean", objective.by_image).item()
            total = reduce_loss(entries, targets, weights, "sum", objective.by_image).item()
            known = ~targets.isnan()
            entropy = binary_cross_entropy_with_logits(logits[known].float(), targets[known].float()).item()
        self.first_loss = mean
        if has_probabilities(network, images, logits):
            self.note(
                "double sigmoid",
                "the head gives probabilities (0 to 1 whatever it sees), but the loss takes logits and makes them "
                "probabilities once more: gradients all but vanish; leave out the sigmoid at the end of HEAD",
            )
        if entropy > BLOWN_UP_LOSS:
            self.note(
                "blown-up start",
                f"before the first step the logits are already far from 0 and wrong (cross-entropy {entropy:.3g} an "
                "entry; knowing nothing costs 0.69): do PRETRAINED_WEIGHTS fit MODEL_NAME, and are they whole?",
            )
        self.multiple = 1.0
        if objective.reduction == "sum" and mean:
            self.multiple = total / mean * batch_size / len(images)
        self.hook = optimizer.register_step_pre_hook(self._look_at_gradient)

    def _look_at_gradient(self, optimizer: Optimizer, *arguments: object) -> None:
        """Judge the first step, which `optimizer` is about to take: its length by SGD, and the weight decay by Adam.

        Length: the loss is never below 0, and nearly a convex function of the head's weights. For small rates a step
        along the gradient lowers it by rate * |gradient|^2. The longest step that makes sense is the one for which
        this equals the loss (Polyak 1987). A backbone with BatchNorm trains with steps of any length, and the length
        of Adam's steps does not depend on the loss's scale: neither is judged.

        Weight decay: Adam and RAdam add it to the gradient, and the larger of the two decides where the step goes
        (Loshchilov and Hutter 2019).
        """
        if self.multiple is None or self.first_loss is None:  # not the first step
            return
        multiple = self.multiple
        descent = 0.0  # by how much the step would lower the loss, if the loss fell in a straight line
        for group in optimizer.param_groups:
            trained = [weight for weight in group["params"] if weight.grad is not None]
            if not trained:
                continue
            part = group["name"].partition(",")[0]
            gradient = get_total_norm([weight.grad for weight in trained]).item()
            if not math.isfinite(gradient):  # fp16's scaler has not found its scale: this step will not be taken
                return
            if part == "head":
                descent += group["lr"] * gradient**2
            decay = group["weight_decay"] * get_total_norm([weight.detach() for weight in trained]).item()
            if type(optimizer) in (torch.optim.Adam, torch.optim.RAdam) and decay > STRONGEST_DECAY * gradient > 0:
                self.note(
                    "weight decay",
                    f"WEIGHT_DECAY pulls {decay / gradient:.3g} times as hard as the loss on the {part}, which adam "
                    'and radam then do little but shrink: set OPTIMIZER = "adamw", whose decay stays apart from the '
                    "gradient, or lower it",
                )
        self.multiple = None
        length = descent / (multiple * self.first_loss) if self.first_loss else 0.0
        if isinstance(optimizer, torch.optim.SGD) and length > LONGEST_STEP:
            advice = "lower the rate (HEAD_BASE_LR or LEARNING_RATE)"
            if multiple > 1:
                advice = f'LOSS_REDUCTION "sum" makes it {multiple:,.0f} times as long as "mean": set that, or {advice}'
            self.note(
                "step too long",
                f"sgd's first step of the head is {length:,.3g} times as long as the longest that can make sense: "
                f"{advice}",
            )

    def watch(self, model: nn.Module, optimizer: Optimizer, average: MovingAverage | None) -> None:
        """Before an epoch: remember the rates, and a sample of those weights that were not seen to move yet."""
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.before, self.average_before = sample(model, PARTS - self.moving), {}
        if average is not None and "average" not in self.moving:
            self.before, self.average_before = sample(model, PARTS), sample(average.module, PARTS)

    def look_at_epoch(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        average: MovingAverage | None,
        loss: float | None,
        num_taken: int,
        num_left_out: int = 0,
        num_overflowed: int = 0,
        num_seen: int | None = None,
    ) -> None:
        """After an epoch: look for steps left out, a loss that rises, rates near 0, and weights that do not move.

        `loss` is the epoch's mean loss, over `num_taken` optimizer steps; None where there was none. `num_seen` of
        these were taken since `watch`: fewer where a run was resumed within the epoch, None for all. `num_left_out`
        steps were left out because their loss or gradient was not finite, and apart from these `num_overflowed`
        because fp16's scaler was looking for its scale.
        """
        if num_left_out:
            self.note(
                "not finite",
                f"{num_left_out} step(s) of the epoch had no finite loss or gradient and were left out: lower the "
                'rates, or set CLIP_GRADIENT_NORM = 1.0 or MIXED_PRECISION = "off"',
            )
        if num_overflowed and not num_taken:
            self.note(
                "overflow",
                f"no step of an epoch was taken, since all {num_overflowed + num_left_out} overflowed in half "
                'precision, which lowers its scale at each of them: set MIXED_PRECISION = "bf16" or "off", '
                'LOSS_REDUCTION = "mean" if it is "sum", or have more steps in an epoch (TRAIN_BATCH_SIZE)',
            )
        self.num_steps += num_taken
        rose = self.first_loss is not None and loss is not None and loss > LOSS_RISE * self.first_loss
        if rose and self.num_steps > LEAST_STEPS:
            self.epochs_above += 1
        else:
            self.epochs_above = 0
        if self.epochs_above == 2 and self.first_loss and loss is not None:
            self.note(
                "loss rose",
                f"the mean loss of two epochs is {loss / self.first_loss:,.3g} times that of the untrained model: the "
                "rates are too high (HEAD_BASE_LR, BACKBONE_BASE_LR, LEARNING_RATE), or set CLIP_GRADIENT_NORM = 1.0",
            )
        if num_seen is None:
            num_seen = num_taken
        if num_seen:
            self._look_at_rates(optimizer)
            self._look_at_weights(model, average)

    def _look_at_rates(self, optimizer: Optimizer) -> None:
        """Look for groups that train, but at a rate near 0 for the whole epoch."""
        for group, before in zip(optimizer.param_groups, self.rates, strict=True):
            trains = any(weight.requires_grad for weight in group["params"])
            rate = max(before, group["lr"])
            if trains and rate <= SMALLEST_RATE * group["initial_lr"]:
                part = group["name"].partition(",")[0]
                self.note(
                    f"rate of the {part}",
                    f"the {part}'s rate was {rate:.3g} for a whole epoch, so that it no longer learns: raise "
                    "LR_DECAY_FACTOR, have it drop less often (LR_MILESTONES, LR_STEP_EPOCHS), or end earlier "
                    "(NUM_EPOCHS)",
                )

    def _look_at_weights(self, model: nn.Module, average: MovingAverage | None) -> None:
        """Look for a backbone, head or average that trains, but did not change since `watch`."""
        moved = find_moved(self.before, model)
        for part in {name.partition(".")[0] for name in self.before} - self.moving:
            if any(name.startswith(f"{part}.") for name in moved):
                self.moving.add(part)
            elif f"rate of the {part}" not in self.findings:
                self.note(
                    f"{part} not training",
                    f"no weight of the {part} changed in a whole epoch though it is not frozen: does the loss reach "
                    "it (no detach or no_grad on the way), and is its rate above 0?",
                )
        # the average can only move where the model moved
        averages = {name: old for name, old in self.average_before.items() if name in moved}
        if average is None or not averages:
            return
        if find_moved(averages, average.module):
            self.moving.add("average")
        else:
            self.note(
                "average dead",
                "the averaged weights stood still for a whole epoch while the model moved: it would be validated as it "
                "began; lower EMA_DECAY (0: off), and is update_parameters called after each step?",
            )

    def look_at_loading(
        self,
        *,
        waiting_share: float,
        seconds: float,
        epochs_left: int,
        num_workers: int,
        default_num_workers: int,
        image_cache: str,
        pictures_on: str = "",
    ) -> None:
        """After an epoch that read images: look at how long the model waited for them.

        The epoch took `seconds`, and the model waited during `waiting_share` (0 to 1) of them. `num_workers` processes
        load images; NUM_WORKERS = None would start `default_num_workers`. `image_cache` is IMAGE_CACHE, and
        `pictures_on` PICTURES_ON where there is a GPU, else "". The first epoch does not count, because processes start
        and caches fill in it.
        """
        is_first, self.has_loaded = not self.has_loaded, True
        seconds_ahead = waiting_share * seconds * epochs_left
        longest = LONGEST_WAIT_OF_GPU if pictures_on else LONGEST_WAIT
        if is_first or waiting_share <= longest or seconds_ahead < LEAST_LOSS_OF_TIME:
            return
        if num_workers < default_num_workers:
            advice = f"set NUM_WORKERS = None ({default_num_workers} processes here; it is {num_workers})"
        elif pictures_on == "cpu":
            advice = 'set PICTURES_ON = "auto", by which the GPU crops, resizes and augments'
        elif image_cache == "none":
            advice = 'set IMAGE_CACHE = "memory" or "disk"'
            if pictures_on == "auto":
                advice += ', or PICTURES_ON = "gpu", by which the GPU decodes JPEGs, too'
        else:
            advice = (
                "make the files smaller (`python dataset_tools.py resize`), or raise IMAGE_CACHE_GB if they exceed it"
            )
        self.note(
            "slow loading",
            f"the model waits for images {waiting_share:.0%} of the time: with images at hand it would be "
            f"{1 / (1 - waiting_share):.1f} times as fast, saving {utils.format_duration(seconds_ahead)}; {advice}",
        )

    def look_at_end(self, num_taken: int) -> None:
        """After the last epoch of a run of `num_taken` optimizer steps."""
        if not num_taken:
            self.note(
                "nothing learned",
                "nothing was learned: no step of the run was taken, and its checkpoint holds the weights as they began",
            )

    # ---- validation ----

    def look_at_validation(
        self,
        *,
        probabilities: NDArray[np.floating],
        targets: ArrayLike,
        threshold: float | NDArray[np.floating],
        classes: Sequence[str],
        loss: float,
        is_last: bool = False,
    ) -> None:
        """After a validation: look at what is predicted, and after the run's last one at copies of training images.

        `probabilities` and `targets` are (N, C), `threshold` is one number or (C,), `loss` is the mean loss. A model at
        its beginning may show any symptom, so one is only said after PATIENCE validations in a row.
        """
        if not math.isfinite(loss):
            self.note(
                "validation loss",
                f'the validation loss is {loss}: lower the rates, or set MIXED_PRECISION = "off"',
            )
            return
        symptoms = find_symptoms(probabilities, targets, threshold, classes)
        self.streaks = {name: self.streaks.get(name, 0) + 1 for name in symptoms}
        for name, text in symptoms.items():
            if self.streaks[name] >= PATIENCE:
                self.note(name, text)
        if is_last and self.copied is not None and self.copied.sum() >= LEAST_POSITIVES and not self.copied.all():
            self._compare_copies(probabilities, targets, threshold, self.copied)

    def _compare_copies(
        self,
        probabilities: NDArray[np.floating],
        targets: ArrayLike,
        threshold: float | NDArray[np.floating],
        copied: NDArray[np.bool_],
    ) -> None:
        """Look whether F1 is higher on the images with a copy in training than on any draw of as many new images.

        `copied` (N,) says which validation images have a copy in training.
        """
        predicted = metrics.predict(probabilities, threshold)
        present, known = metrics.as_known(targets)
        copied_rows, new_rows = np.flatnonzero(copied), np.flatnonzero(~copied)
        rng = np.random.default_rng(0)

        def measure_f1(rows: NDArray[np.intp]) -> float:
            hits = (predicted[rows] & present[rows]).sum(axis=0)
            num_predicted = (predicted[rows] & known[rows]).sum(axis=0)
            positives = present[rows].sum(axis=0)
            return float(metrics.f_beta_of(hits, num_predicted, positives) @ positives / max(positives.sum(), 1))

        drawn = [measure_f1(rng.choice(new_rows, len(copied_rows))) for _ in range(RESAMPLES)]
        f1_of_copies = measure_f1(copied_rows)
        if f1_of_copies > max(drawn):
            f1_of_new, f1_of_all = measure_f1(new_rows), measure_f1(np.arange(len(copied)))
            self.note(
                "F1 from copies",
                f"F1 is {f1_of_copies:.3f} on the {len(copied_rows)} validation images with a copy in training and "
                f"{f1_of_new:.3f} on the {len(new_rows)} others: {f1_of_all:.3f}, of all, is more than new images will "
                "see",
            )


# ---- what is looked for ----


def find_shared_images(train: Sequence[str], val: Sequence[str]) -> list[str | None]:
    """For each file of `val`, a file of `train` with the same bytes, or None.

    Only files that have the same size are opened, and only those that have the same middle, too, are read. Members of
    shards are left out, because they may lie far away. Raises InputError for a file that cannot be read.
    """
    files, first_val = [*train, *val], len(train)
    rows = [row for row, path in enumerate(files) if split_member(path) is None]
    sizes = stamp_files([files[row] for row in rows]).reshape(-1, 2)[:, 0].tolist()
    # files with the same key may be copies; the key is first the size, then also the middle, then also the hash
    keys: dict[int, Any] = _keep_shared(dict(zip(rows, sizes, strict=True)), first_val)
    with ThreadPool() as pool:
        for read in (_read_middle, _hash_file):
            contents = pool.map(read, [files[row] for row in keys])
            longer_keys = {row: (keys[row], content) for row, content in zip(keys, contents, strict=True)}
            keys = _keep_shared(longer_keys, first_val)
    twins = {key: files[row] for row, key in keys.items() if row < first_val}
    return [twins[keys[row]] if row in keys else None for row in range(first_val, len(files))]


def _keep_shared(keys: dict[int, Any], first_val: int) -> dict[int, Any]:
    """Those of `keys` {row: key} whose key both a training row (before `first_val`) and a validation row have."""
    train_keys = {key for row, key in keys.items() if row < first_val}
    val_keys = {key for row, key in keys.items() if row >= first_val}
    shared = train_keys & val_keys
    return {row: key for row, key in keys.items() if key in shared}


def _read_middle(path: str) -> bytes:
    with _open(path) as file:
        file.seek(max(0, file.seek(0, 2) // 2 - BLOCK_BYTES // 2))
        return file.read(BLOCK_BYTES)


def _hash_file(path: str) -> bytes:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def _open(path: str) -> BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from error


def has_probabilities(network: nn.Module, images: Tensor, logits: Tensor) -> bool:
    """Whether `network` gives probabilities instead of logits: its `logits` for `images` lie within 0 to 1.

    Logits may lie there by chance. So the network is also run on very loud noise (10,000 times normal), which drives
    logits out of this range, but not what a sigmoid or softmax gives.
    """
    if not ((logits >= 0) & (logits <= 1)).all():
        return False
    noise = 1e4 * torch.randn(16, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        noise_logits = copy.deepcopy(network).eval()(noise.to(images.device))
    return bool(((noise_logits >= 0) & (noise_logits <= 1)).all())


def sample(module: nn.Module, parts: Collection[str]) -> dict[str, Tensor]:
    """Copies of some entries of each parameter that trains, {name: entries}, of the `parts` backbone and head."""
    return {
        name: weight.detach().flatten()[:: weight.numel() // SAMPLED_ENTRIES + 1].clone()
        for name, weight in module.named_parameters()
        if weight.requires_grad and name.partition(".")[0] in parts
    }


def find_moved(before: Mapping[str, Tensor], module: nn.Module) -> set[str]:
    """The names in `before`, an earlier `sample` of `module`, of the parameters that have changed since."""
    if not before:
        return set()
    now = sample(module, PARTS)
    moved = torch.stack([(now[name] != old).any() for name, old in before.items()]).tolist()
    return {name for name, has_moved in zip(before, moved, strict=True) if has_moved}


def describe_noise(validated: Mapping[int, float], error: float, num_images: int, val_is_drawn: bool) -> str | None:
    """A sentence where noise chose the best epoch of a run with few validation images; else None.

    `validated` is {epoch: F1}, and `error` the standard error of the best epoch's F1. Epochs see the same images, so
    the error of a difference between two of them is smaller: those within one `error` of the best may still differ,
    but not so that these images could tell. It is a sentence of the result and no finding: nothing is wrong.
    """
    best = max(validated.values(), default=0.0)
    alike = [epoch for epoch, f1 in validated.items() if best - f1 <= error]
    if num_images >= thresholds.FEW_IMAGES or len(alike) < 2 or 2 * len(alike) <= len(validated):
        return None
    difference = best - min(validated[epoch] for epoch in alike)
    if not difference:  # the first of equal epochs is as good as any
        return None
    advice = "more validation images"
    if val_is_drawn:
        advice += " (VAL_SPLIT), or all of them in turn (FOLDS),"
    return (
        f"the choice among epochs {alike[0]} to {alike[-1]} rests on noise: F1 of {len(alike)} of them differs by at "
        f"most {difference:.3f}, its standard error on {num_images} images is {error:.3f}; {advice} would tell"
    )


def find_symptoms(
    probabilities: NDArray[np.floating],
    targets: ArrayLike,
    threshold: float | NDArray[np.floating],
    classes: Sequence[str],
) -> dict[str, str]:
    """What is odd about probabilities (N, C), and about what they predict at the threshold or (C,) thresholds.

    Returns {name: sentence}, empty where nothing is odd or there are too few images to say.
    """
    present, known = metrics.as_known(targets)
    if len(probabilities) < LEAST_IMAGES:
        return {}
    spread = np.ptp(probabilities, axis=0).max()
    if spread < SMALLEST_SPREAD:
        return {
            "same for every image": f"every image gets the same probabilities (up to {spread:.2g}): the model does not "
            "see what is in them; lower the rates, check that PRETRAINED_WEIGHTS fit MODEL_NAME, and give random "
            "weights more steps"
        }
    predicted = metrics.predict(probabilities, threshold)
    positives = present.sum(axis=0)
    shown = f"the threshold {np.mean(threshold):.3g}"
    if not predicted.any() and positives.sum() >= LEAST_POSITIVES:
        return {
            "all negative": f"no class is predicted for any validation image: {shown} lies above all "
            f"scores (the highest is {probabilities.max():.3g}); see THRESHOLD_GOAL and TH_MULTI_LABEL"
        }
    if predicted.all() and positives.sum() < known.sum() / 2:
        return {
            "all positive": f"every class is predicted for every validation image: {shown} lies below "
            f"all scores (the lowest is {probabilities.min():.3g}), which do not tell images apart; train longer, or "
            "with other rates"
        }
    symptoms = {}
    edge = np.ravel(threshold)[np.abs(np.ravel(threshold) - 0.5) > 0.5 - EDGE]
    if len(edge):
        symptoms["threshold at the edge"] = (
            f"the best threshold is {edge[0]:.6f}: the probabilities are crowded at "
            f"{edge[0]:.0f}, where half-precision and int8 models cannot tell them apart; USE_POS_WEIGHT "
            "and the loss's weights move them, LABEL_SMOOTHING keeps them off the edge"
        )
    never = np.flatnonzero((positives >= LEAST_POSITIVES) & ~predicted.any(axis=0))
    if len(never):
        names = show_names([f"{classes[c]} ({positives[c]} positives)" for c in never.tolist()], most=3)
        symptoms["never predicted"] = (
            f"{len(never)} class(es) are never predicted for a validation image: {names}; set "
            'THRESHOLD_SCOPE = "per_class", or USE_POS_WEIGHT = True'
        )
    return symptoms
