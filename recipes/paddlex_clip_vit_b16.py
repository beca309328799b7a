"""PaddleX's run: CLIP's ViT-B/16 at 448 pixels with ML-Decoder and asymmetric loss; published mAP 89.15 on COCO 2017.

Source: PaddleX and PaddleClas, MLDecoder/CLIP_vit_base_patch16_448_ml_decoder_448.yaml;
batch of one GPU.
"""

MODEL_NAME = "clip_vit_b16"
HEAD = "ml_decoder"
IMAGE_SIZE = 448
AUGMENTATION = "none"
AUGMENTATION_POLICY = "rand_augment"
ERASING_PROBABILITY = 1.0
FREEZE_BACKBONE = False
NUM_EPOCHS = 40
TRAIN_BATCH_SIZE = 16
OPTIMIZER = "adamw"
WEIGHT_DECAY = 1e-4
DECAY_NORMS_AND_BIASES = False
EMA_DECAY = 0.9997
USE_DIFFERENTIAL_LR = False
LEARNING_RATE = 5e-5
SCHEDULE = "cosine"
WARMUP_EPOCHS = 5.0
LOSS = "asymmetric"
LOSS_REDUCTION = "sum"
