"""What the words of other systems are called in this one; the error for an unknown option or name quotes it.

`WORDS`: an option as on that system's command line, without dashes, in lower case and with _ for -: what it is here.
"""

WORDS: dict[str, str] = {
    "backbone": "MODEL_NAME",
    "batch_size": "TRAIN_BATCH_SIZE",
    "epochs": "NUM_EPOCHS",
    "export_ir": "EXPORT_FORMATS openvino",
    "jit": "EXPORT_FORMATS torchscript",
}
