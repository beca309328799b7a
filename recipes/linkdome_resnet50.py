"""LinkDome's run: ResNet-50 with a small network for each label, SGD, heads at ten times the backbone's rate.

Source: LinkDome Multi-Label Classification Project, README and LD_TRAIN_MUL_CLA.py. No mAP is published.
"""

MODEL_NAME = "resnet50"
HEAD = "per_label_mlp"
IMAGE_SIZE = 224
RESIZE_RULE = "center_crop"
VAL_SPLIT = 0.2
SEED = 42
SPLIT_SEED = 42
AUGMENTATION = "crop_flip"
CROP_SCALE_MIN = 0.08  # torchvision's RandomResizedCrop
ROTATION_DEGREES = 10.0
COLOR_JITTER = 0.2
FREEZE_BACKBONE = False
NUM_EPOCHS = 10
TRAIN_BATCH_SIZE = 32
OPTIMIZER = "sgd"
WEIGHT_DECAY = 5e-4
BACKBONE_BASE_LR = 0.01
HEAD_BASE_LR = 0.1
SCHEDULE = "step"
LR_STEP_EPOCHS = 40
LR_DECAY_FACTOR = 0.1
LOSS = "bce_with_logits"
USE_POS_WEIGHT = False
