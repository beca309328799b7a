"""The Chinese classification library's run: EfficientNet-B0, one sigmoid a class, GHM weights, its own warm-up rule.

Source: "PyTorch classification library" (in Chinese), README and main.py, with
AutoAugment in place of its own augmentation; accuracy 89.3 % on its author's own data.
One label an image: LOSS = "softmax" without ENTRY_WEIGHTS is its other choice.
"""

MODEL_NAME = "efficientnet_b0"
HEAD = "linear"
IMAGE_SIZE = 224
RESIZE_RULE = "letterbox"
AUGMENTATION = "flip"
AUGMENTATION_POLICY = "auto_augment"
FREEZE_BACKBONE = False
NUM_EPOCHS = 85
TRAIN_BATCH_SIZE = 256
OPTIMIZER = "adam"
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 1e-3
SCHEDULE = "warmup_steps"
WARMUP_EPOCHS = 5.0
LOSS = "bce_with_logits"
USE_POS_WEIGHT = False
ENTRY_WEIGHTS = ("ghm",)
