"""Every constant a run depends on: edit a line, then `python training.py`, `python testing.py`.

The same edit for one run only: `python training.py --MODEL_NAME resnet50 --LR_MILESTONES 3,5`, or a file of
constants: `python training.py recipes/coco18.py`. `--help` lists everything with its present value.
Sections marked * decide what is learned: their values name the checkpoint file.
"""

from pathlib import Path
from typing import Literal

# ---- Files and folders ----
LOCAL_ROOT: Path = Path.home() / "ms-coco"  # holds the data set and everything a run writes
DATASET_FOLDER: Path = Path(LOCAL_ROOT) / "ms-coco-dataset"  # one data set, in any of the formats of DATASET_FORMAT
IMAGES_DIR: Path = Path(DATASET_FOLDER) / "images"  # coco_cls: the splits' images lie in here
LABELS_DIR: Path = Path(DATASET_FOLDER) / "labels"  # coco_cls: and their labels in here
TRAIN_IMAGES_DIR: Path = Path(IMAGES_DIR) / "train-resized"  # coco_cls: training and validation images
TRAIN_LABELS_DIR: Path = Path(LABELS_DIR) / "train"  # coco_cls: a .cls file an image, a class index a line
TEST_IMAGES_DIR: Path = Path(IMAGES_DIR) / "test-resized"  # what testing.py predicts, where no format says otherwise
TEST_LABELS_DIR: Path = Path(LABELS_DIR) / "test"  # coco_cls: where it exists, testing.py measures, too
TRAINED_MODELS_FOLDER: Path = Path(LOCAL_ROOT) / "trained_models"  # <model>/<configuration>.pt and .json
BEST_MODEL_PATH: Path = Path(TRAINED_MODELS_FOLDER) / "best_model.pt"  # copy of the checkpoint the last run selected
MODEL_PATH: Path = Path(BEST_MODEL_PATH)  # what testing.py loads
PRETRAINED_MODELS_FOLDER: Path = Path(LOCAL_ROOT) / "pretrained_models"  # pretrained weights, downloaded once
CACHE_FOLDER: Path = Path(LOCAL_ROOT) / "cache"  # features and decoded images; can be deleted at any time
PREDICTIONS_FOLDER: Path = Path(LOCAL_ROOT) / "predictions"  # what testing.py writes
TENSORBOARD_FOLDER: Path = Path("runs")  # tensorboard --logdir runs

# ---- Reading ----
EXTRA_DATASET_FOLDERS: tuple[str, ...] = ()  # whose training images join in; their classes agree by name
EXCLUDE_LIST: Path | None = None  # a path a line, from DATASET_FOLDER on, of images that training leaves out
BAD_IMAGES: Literal["error", "skip"] = "error"  # skip: training tries each image once and leaves out what is damaged
GROUP_PATTERN: str | None = None  # regular expression over paths: its first group names an image's source
LABEL_SEPARATOR: Literal[";", ",", "|", " "] = ";"  # csv: between the names in the column `labels`
COUNT_CROWDS: bool = True  # coco_json: an annotation of a crowd makes its class present
CHECK_LABEL_FILES: bool = True  # coco_cls: see labels edited in place; False: new and renamed files only, but at once

# ---- Data * ----
DATASET_FORMAT: Literal[
    "auto", "coco_cls", "train_list", "mlcls", "image_folder", "classes_json", "coco_json", "csv"
] = "auto"  # auto: recognised from what lies in DATASET_FOLDER
VAL_SPLIT: float = 0.1  # share of the training images kept for validation, stratified over all labels
IMAGE_SIZE: int = 224  # pixels, side of the square the model sees
RESIZE_RULE: Literal["squash", "center_crop"] = "squash"  # center_crop keeps the shape but loses the edges
AUGMENTATION: Literal["none", "crop_flip"] = "crop_flip"  # of training images
CROP_SCALE_MIN: float = 0.5  # smallest share of an image's area that a random crop keeps
IMAGE_CACHE: Literal["none", "memory", "disk"] = "none"  # keep decoded images, shrunk to what the crops need

# ---- Model * ----
MODEL_NAME: Literal[
    "resnet18", "resnet50", "densenet121", "mobilenet_v2", "efficientnet_b0", "vgg16", "efficientnet_lite0"
] = "resnet18"  # the backbone
HEAD: Literal["linear_bn"] = "linear_bn"  # Linear -> BatchNorm1d
PRETRAINED_WEIGHTS: str | None = "default"  # default: ImageNet's; None: from scratch; else a file of the backbone

# ---- Freezing the backbone * ----
FREEZE_BACKBONE: bool = True  # the initial freeze state, unless the next line says otherwise
FREEZE_BACKBONE_AT_START: bool = FREEZE_BACKBONE  # the backbone is frozen from epoch 1 on
UNFREEZE_BACKBONE_EPOCH: int = 4  # first epoch that trains the backbone; 0 or beyond NUM_EPOCHS: never
FROZEN_FEATURE_VIEWS: int = 2  # augmented views of an image to compute frozen features of, once; 0: anew each epoch
GROWING_IMAGE_SIZES: tuple[int, ...] = ()  # pixels, of the first epochs that train the backbone; then IMAGE_SIZE
KEEP_BACKBONE_STATISTICS: bool = False  # BatchNorm statistics stay as pretrained even when the backbone trains

# ---- Optimisation * ----
NUM_EPOCHS: int = 10  # passes over the training split
TRAIN_BATCH_SIZE: int = 32  # images
OPTIMIZER: Literal["adam", "adamw", "sgd"] = "adam"  # sgd: momentum 0.9, Nesterov
WEIGHT_DECAY: float = 0.0  # of all parameters; 0: none
USE_DIFFERENTIAL_LR: bool = True  # True: BACKBONE_BASE_LR and HEAD_BASE_LR; False: LEARNING_RATE for all
LEARNING_RATE: float = 1e-3  # without differential LR
BACKBONE_BASE_LR: float = 1e-4  # with differential LR
HEAD_BASE_LR: float = 1e-3  # with differential LR
SCHEDULE: Literal["multistep", "cosine"] = "multistep"  # one schedule over the whole run, frozen or not
LR_MILESTONES: tuple[int, ...] = (6, 8)  # multistep: epochs after which the rate drops; () never
LR_DECAY_FACTOR: float = 0.1  # multistep: what a drop multiplies by
WARMUP_EPOCHS: float = 0.0  # cosine: epochs of linear rise before the fall to 0
LOSS: Literal["bce_with_logits"] = "bce_with_logits"  # binary cross-entropy of each class
USE_POS_WEIGHT: bool = True  # weigh each class's positives by negatives / positives of the training split
POS_WEIGHT_CAP: float = 20.0  # largest such weight; 0: no cap
MIXED_PRECISION: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: what the GPU does well; off on a CPU
SEED: int = 0  # of the split, the order, the augmentation and the new head

# ---- Validation and stopping * ----
VAL_EVERY_N_EPOCHS: int = 1  # the last epoch always validates
EARLY_STOPPING_ENABLED: bool = False  # stop when validation F1 no longer rises
EARLY_STOPPING_PATIENCE: int = 3  # validations without a better F1 before stopping
EARLY_STOPPING_MIN_DELTA: float = 0.0  # a gain in F1 no larger than this does not count for early stopping

# ---- Testing ----
TEST_BATCH_SIZE: int = 64  # images; also for validation
TH_MULTI_LABEL: float = 0.5  # probability threshold where a checkpoint has no best_threshold
BOOTSTRAP_SAMPLES: int = 1000  # resamples of the test images for the metrics' 95 % intervals; 0: no intervals
TEST_ENGINE: Literal["torch", "onnxruntime", "openvino"] = "torch"  # others: quicker, CPU only, requirements-export.txt
TEST_INT8: bool = False  # openvino only: 8-bit integers, quicker still; probabilities move, so compare the metrics
INT8_CALIBRATION_IMAGES: int = 300  # with TEST_INT8: taken evenly from TRAIN_IMAGES_DIR to find the integers' ranges

# ---- Machine ----
DEVICE: str = "auto"  # auto: the GPU where there is one; else cpu, cuda, cuda:1, mps
NUM_WORKERS: int | None = None  # data loading processes; None: chosen (none on a CPU); 0: none
IMAGE_CACHE_GB: float = 8.0  # largest size of the image cache; what lies beyond is decoded each time
FEATURE_CACHE_GB: float = 20.0  # largest size of one run's frozen features; larger: anew each epoch
CHANNELS_LAST: bool = True  # memory order that is faster for convolutions
COMPILE: bool = False  # torch.compile the model: minutes at the start; pays on GPUs, hardly on CPUs
RESUME: Literal["auto", "never"] = "auto"  # auto: go on with an interrupted run of the same configuration

# ---- Reports ----
TRAIN_METRICS_EVERY_N_EPOCHS: int = 0  # measure the training split too, every so many epochs; 0: never
USE_TENSORBOARD: bool = False  # scalars, PR curves, pictures and hparams into TENSORBOARD_FOLDER

# ---- Classes ----
CLASSES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip  # in index order; a classes.txt in DATASET_FOLDER (one name a line) takes their place
NUM_CLASSES: int = len(CLASSES)  # 80; a classes.txt in DATASET_FOLDER sets it
