"""The metric-learning run: EfficientNetV2-S, ML-Decoder on cosines, angular loss; published mAP 88.75 on COCO 2014.

Source: Prokofiev and Sovrasov 2022 (arXiv 2209.06585), EfficientNetV2_small_mld.yml, which
starts from OpenImages weights, not from timm's ImageNet-21k ones.
"""

MODEL_NAME = "tf_efficientnetv2_s.in21k"
HEAD = "ml_decoder"
IMAGE_SIZE = 448
AUGMENTATION = "flip"
AUGMENTATION_POLICY = "rand_augment"
ERASING_PROBABILITY = 0.5
ERASING_MAX_SHARE = 0.16
FREEZE_BACKBONE = False
NUM_EPOCHS = 60
TRAIN_BATCH_SIZE = 84
OPTIMIZER = "sgd"
SAM_RHO = 0.05
WEIGHT_DECAY = 5e-4
DECAY_NORMS_AND_BIASES = False
EMA_DECAY = 0.9997
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 0.007
SCHEDULE = "onecycle"
ONECYCLE_PEAK = 0.2
LOSS = "asymmetric_angular"
LOSS_REDUCTION = "sum"
ANGULAR_SCALE = 23.0
EARLY_STOPPING_ENABLED = True
EARLY_STOPPING_PATIENCE = 5
