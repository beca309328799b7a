"""The drawn data set of `make demo`: ImageNet weights, about a minute of training on two CPU cores."""

LOCAL_ROOT = "demo"
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
