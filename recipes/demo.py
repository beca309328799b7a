"""The drawn data set of `make demo`: ImageNet weights, about a minute of training on two CPU cores.

It names every constant that the demo depends on, so that it works, and touches nothing outside LOCAL_ROOT, whatever
is edited in config.py. A recipe for work of your own names only what it changes.
"""

# ---- What makes the demo quick and good ----
MODEL_NAME = "efficientnet_lite0"
IMAGE_SIZE = 112
NUM_EPOCHS = 3
TRAIN_BATCH_SIZE = 16
FREEZE_BACKBONE = False  # what is drawn differs from photographs: features have to move from the start
SCHEDULE = "cosine"
WARMUP_EPOCHS = 0.3
HEAD_BASE_LR = 1e-2
BACKBONE_BASE_LR = 2e-3
USE_POS_WEIGHT = False
CROP_SCALE_MIN = 0.9  # a tighter crop would lose small objects

# ---- Folders ----
LOCAL_ROOT = "demo"
DATASET_FOLDER = f"{LOCAL_ROOT}/ms-coco-dataset"
IMAGES_DIR = f"{DATASET_FOLDER}/images"
LABELS_DIR = f"{DATASET_FOLDER}/labels"
TRAIN_IMAGES_DIR = f"{IMAGES_DIR}/train-resized"
TRAIN_LABELS_DIR = f"{LABELS_DIR}/train"
TEST_IMAGES_DIR = f"{IMAGES_DIR}/test-resized"
TEST_LABELS_DIR = f"{LABELS_DIR}/test"
TRAINED_MODELS_FOLDER = f"{LOCAL_ROOT}/trained_models"
BEST_MODEL_PATH = f"{TRAINED_MODELS_FOLDER}/best_model.pt"
BEST_MODEL = "best"
MODEL_PATH = BEST_MODEL_PATH
PRETRAINED_MODELS_FOLDER = f"{LOCAL_ROOT}/pretrained_models"
CACHE_FOLDER = f"{LOCAL_ROOT}/cache"
PREDICTIONS_FOLDER = f"{LOCAL_ROOT}/predictions"
TENSORBOARD_FOLDER = f"{LOCAL_ROOT}/runs"

# ---- The values that config.py comes with ----
EXTRA_DATASET_FOLDERS = ()
EXCLUDE_LIST = None
LABEL_CORRECTIONS = None
BAD_IMAGES = "error"
GROUP_PATTERN = None
CHECK_LABEL_FILES = True
DATASET_FORMAT = "auto"
ABSENT_MEANS = "absent"
VAL_SPLIT = 0.1
RESIZE_RULE = "squash"
IMAGE_CACHE = "none"
AUGMENTATION = "crop_flip"
AUGMENTATION_POLICY = "none"
COLOR_JITTER = 0.0
ROTATION_DEGREES = 0.0
ERASING_PROBABILITY = 0.0
MIXUP_ALPHA = 0.0
CUTMIX_ALPHA = 0.0
MULTI_SCALE_SIZES = ()
HEAD = "linear_bn"
PRETRAINED_WEIGHTS = "default"
USE_PRIOR_BIAS = False
FREEZE_BACKBONE_AT_START = FREEZE_BACKBONE
HEAD_FIT = "steps"
GROWING_IMAGE_SIZES = ()
KEEP_BACKBONE_STATISTICS = False
UNFROZEN_BATCH_SIZE = 0
CLIP_GRADIENT_NORM = 0.0
OPTIMIZER = "adam"
SAM_RHO = 0.0
WEIGHT_DECAY = 0.0
EMA_DECAY = 0.0
LORA_RANK = 0
USE_DIFFERENTIAL_LR = True
LAYER_DECAY = 1.0
MIXED_PRECISION = "auto"
SYNC_BATCHNORM = False
SEED = 0
SPLIT_SEED = 0
LOSS = "bce_with_logits"
LOSS_REDUCTION = "mean"
LABEL_SMOOTHING = 0.0
ENTRY_WEIGHTS = ()
POSITIVE_CLASS_WEIGHTS = ()
NEGATIVE_CLASS_WEIGHTS = ()
TEACHER_PROBABILITIES = ()
TEACHER_CHECKPOINTS = ()
CURRICULUM = None
FOLDS = 0
VAL_EVERY_N_EPOCHS = 1
EARLY_STOPPING_ENABLED = False
TEST_SPLIT = "test"
TEST_BATCH_SIZE = 64
BOOTSTRAP_SAMPLES = 1000
SLICES = ()
PREDICTION_FILES = ()
TEST_FLIP = False
TEST_SCALES = (1.0,)
TEST_ENGINE = "auto"
TEST_INT8 = False
THRESHOLD_SCOPE = "global"
THRESHOLD_GOAL = "f1"
LABELS_PER_IMAGE = "any"
MIN_LABELS = 0
MAX_LABELS = 0
ABSTAIN = 0.0
CALIBRATION = "none"
DEVICE = "auto"
NUM_WORKERS = None
PICTURES_ON = "auto"
MICRO_BATCH_SIZE = 0
ACTIVATION_CHECKPOINTING = False
COMPILE = False
RESUME = "auto"
SAVE_EVERY_N_EPOCHS = 0
TRAIN_METRICS_EVERY_N_EPOCHS = 0
LOGGERS = ()
CLASSES = ("house", "tree", "fish", "car", "flower", "star", "umbrella", "ball", "ring", "cup")
NUM_CLASSES = len(CLASSES)
