"""The drawn data set of `make demo`: EfficientNet-Lite0 with ImageNet weights, in a minute on two CPU cores."""

LOCAL_ROOT = "demo"
MODEL_NAME = "efficientnet_lite0"
IMAGE_SIZE = 128
NUM_EPOCHS = 5
UNFREEZE_BACKBONE_EPOCH = 2
SCHEDULE = "cosine"
HEAD_BASE_LR = 3e-3
BACKBONE_BASE_LR = 1e-3
CROP_SCALE_MIN = 0.7
VAL_SPLIT = 0.15
