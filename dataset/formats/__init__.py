"""The annotation formats. Each file of this folder holds one format: how it is recognised, read and written.

    table = FORMATS["mlcls"].read(root, "train")
    FORMATS["csv"].write(table, other_root, "train", names)    # names: the images' paths within images_folder("train")

To add a format, write one new file here that ends with a `FORMAT`, and add one line to FORMATS, one word to
DATASET_FORMAT in config.py. A format that has no `writer` is only read; one that has gets a word in TO in
dataset_tools.py, too.

The splits are called "train", "val" and "test" in every format, whatever its files are called.

coco_cls      `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see dataset/label_files.py), `classes.txt`
train_list    `<split>_list.txt`: `path<TAB>1,0,-1` (1 present, 0 absent, -1 or blank unknown), `classes.txt`
mlcls         `label.txt`: `index name`; `<split>.txt` like train_list's (PaddleX's MLClsDataset)
image_folder  `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes
classes_json  `<split>.json`: {"classes": [names], "images": [[path, [names present], [names unknown]?], ...]}
coco_json     `annotations/instances_<split>*.json`, images in `<split>*/` or `images/<split>*/`; classes by rising id;
              an image's "unknown_category_ids" are unknown
csv           `<split>.csv`, or one file with a column `split`. Other columns: `image_path`; `labels` (names joined by
              a separator, in quotes where they hold it) or one a class (1, 0, -1 or blank); `group`, if any. Those of
              other tools may have other headings, delimiters and encodings
webdataset    `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv` (see
              dataset/tar_shards/); `classes.txt`, where it is there, orders the classes
roboflow      `<split>/_classes.csv` beside the images: `filename` and a column a class; val is called `valid`
label_studio  what Label Studio exports as JSON, JSON-MIN or CSV; `classes.txt`, where it is there, orders the classes
              (only read)
cvat          `annotations.xml` of CVAT for images, images in `images/` (only read)
huggingface   `<split>/metadata.csv` or .jsonl beside the images, or one in the folder: `file_name`, `labels` or `label`
              or `objects`; `classes.txt`, where it is there, orders the classes
celeba        `list_attr_celeba.txt` or .csv, `list_eval_partition.txt` or .csv, images in `img_align_celeba/`
chestxray14   `Data_Entry_2017*.csv`, `train_val_list.txt` and `test_list.txt`, images in `images*/` (NIH)
chexpert      `train.csv` and `valid.csv` with `Path` and a column for each observation
open_images   `*<split>-annotations-human-imagelabels*.csv`, `*class-descriptions*.csv`, images in `<split>/`
pascal_voc    `JPEGImages/`, `ImageSets/Main/` and `Annotations/`, also in `VOC*/`
label_rows    `<split>.csv` with an image and its `label`: a name, names joined by commas, or a row for each
value_list    `<split>.txt` with lines `path 0 1 0`, and no `label.txt`; `classes.txt` or `Concepts81.txt` (NUS-WIDE)
yolo          `data.yaml` and `labels/<split>/a.txt` with a box a line, images in `images/<split>/`; or as Roboflow,
              Label Studio and CVAT write them
createml      a JSON list of images with `annotations`: names, or boxes with a label (Create ML)
fiftyone      `labels.json` or `samples.json`, images in `data/`
via           a project, JSON or CSV of VGG Image Annotator 2
datumaro      `annotations/<split>.json` with `categories` and `items`, images in `images/<split>/`
voc_xml       `a.xml` as in Pascal VOC for each `a.jpg`, beside it or in another folder
labelme       `a.json` of Labelme for each `a.jpg`, likewise
automl        a csv without a header: `TRAIN,gs://bucket/a.jpg,cat,dog`; the images are found by their names
blank_tags    `train*.csv` of a published data set whose tags are separated by blanks, images in `train-jpg/` and so on

Paths are relative to the data set's folder, except in classes_json, where they are relative to the file.
"""

from __future__ import annotations

from dataset.formats import (
    automl,
    blank_tags,
    celeba,
    chestxray14,
    chexpert,
    classes_json,
    coco_cls,
    coco_json,
    createml,
    csv,
    cvat,
    datumaro,
    fiftyone,
    huggingface,
    image_folder,
    label_rows,
    label_studio,
    labelme,
    mlcls,
    open_images,
    pascal_voc,
    roboflow,
    train_list,
    value_list,
    via,
    voc_xml,
    webdataset,
    yolo,
)
from dataset.formats.base import Format

FORMATS: dict[str, Format] = {
    "coco_cls": coco_cls.FORMAT,
    "train_list": train_list.FORMAT,
    "mlcls": mlcls.FORMAT,
    "image_folder": image_folder.FORMAT,
    "classes_json": classes_json.FORMAT,
    "coco_json": coco_json.FORMAT,
    "csv": csv.FORMAT,
    "webdataset": webdataset.FORMAT,
    "roboflow": roboflow.FORMAT,
    "label_studio": label_studio.FORMAT,
    "cvat": cvat.FORMAT,
    "huggingface": huggingface.FORMAT,
    "celeba": celeba.FORMAT,
    "chestxray14": chestxray14.FORMAT,
    "chexpert": chexpert.FORMAT,
    "open_images": open_images.FORMAT,
    "pascal_voc": pascal_voc.FORMAT,
    "blank_tags": blank_tags.FORMAT,
    "label_rows": label_rows.FORMAT,
    "value_list": value_list.FORMAT,
    "automl": automl.FORMAT,
    "yolo": yolo.FORMAT,
    "createml": createml.FORMAT,
    "fiftyone": fiftyone.FORMAT,
    "via": via.FORMAT,
    "datumaro": datumaro.FORMAT,
    "voc_xml": voc_xml.FORMAT,
    "labelme": labelme.FORMAT,
}
WRITABLE = tuple(name for name, format in FORMATS.items() if format.writer)
