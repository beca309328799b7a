"""The run this repository began with: ResNet-18, Linear -> BatchNorm1d, frozen first, then trained at two rates.

Source: "MS-COCO Multi-Label Classification", README. No mAP is published.
"""

MODEL_NAME = "resnet18"
HEAD = "linear_bn"
IMAGE_SIZE = 224
FREEZE_BACKBONE = True
UNFREEZE_BACKBONE_EPOCH = 4
OPTIMIZER = "adam"
USE_DIFFERENTIAL_LR = True
BACKBONE_BASE_LR = 1e-4
HEAD_BASE_LR = 1e-3
SCHEDULE = "multistep"
LR_MILESTONES = (6, 8)
LOSS = "bce_with_logits"
USE_POS_WEIGHT = True
