MODEL_NAME = "efficientnet_lite2"
FEATURES = "mean_and_max"
IMAGE_SIZE = 384
HEAD = "linear"
HEAD_FIT = "search"
NUM_EPOCHS = 1
UNFREEZE_BACKBONE_EPOCH = 0
USE_POS_WEIGHT = False
