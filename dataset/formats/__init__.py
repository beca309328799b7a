"""The annotation formats: each is recognised, read into a table, and written from one.

    table = FORMATS["mlcls"].read(root, "train")
    FORMATS["csv"].write(table, other_root, "train", names)    # names: the images' paths within images_folder("train")

Splits are called "train", "val" and "test" in every format, whatever its files are called.

coco_cls      `images/<split>-resized/a.jpg` and `labels/<split>/a.cls` (see dataset/label_files.py), `classes.txt`
train_list    `<split>_list.txt`: `path<TAB>1,0,-1` (1 present, 0 absent, -1 or blank unknown), `classes.txt`
mlcls         `label.txt`: `index name`; `<split>.txt` like train_list's (PaddleX's MLClsDataset)
image_folder  `<split>/<class>/a.jpg`, one label an image; `classes.txt`, where it is there, orders the classes
classes_json  `<split>.json`: {"classes": [names], "images": [[path, [names present], [names unknown]?], ...]}
coco_json     `annotations/instances_<split>*.json`, images in `<split>*/` or `images/<split>*/`; classes by rising id;
              an image's "unknown_category_ids" are unknown
csv           `<split>.csv`, or one file with a column `split`. Other columns: `image_path`; `labels` (names joined by
              a separator, in quotes where they hold it) or one a class (1, 0, -1 or blank); `group`, if any
webdataset    `<split>-000000.tar` and so on, or a `shards.txt` of where they lie; `<split>.index.csv` (see
              dataset/tar_shards.py); `classes.txt`, where it is there, orders the classes

Paths are relative to the data set's folder, except in classes_json, where they are relative to the file.
"""

from __future__ import annotations

from dataset.formats.base import Format
from dataset.formats.classes_json import read_classes_json, write_classes_json
from dataset.formats.coco_cls import (
    coco_cls_images,
    list_coco_cls_splits,
    name_coco_cls_images,
    read_coco_cls,
    write_coco_cls,
)
from dataset.formats.coco_json import list_coco_json_splits, read_coco_json, write_coco_json
from dataset.formats.csv import list_csv_files, name_csv_images, read_csv_split, write_csv
from dataset.formats.image_folder import (
    list_image_folder_splits,
    name_image_folder_images,
    read_image_folder,
    shorten_image_folder_names,
    write_image_folder,
)
from dataset.formats.mlcls import list_mlcls_splits, read_mlcls, write_mlcls
from dataset.formats.rows import images_in_splits, list_split_files
from dataset.formats.train_list import read_train_list, write_train_list
from dataset.formats.webdataset import name_members, read_webdataset, write_webdataset
from dataset.tar_shards import decode_name, list_shard_splits

# ---- all of them ----

FORMATS: dict[str, Format] = {
    "coco_cls": Format(list_coco_cls_splits, read_coco_cls, write_coco_cls, coco_cls_images, name_coco_cls_images),
    "train_list": Format(
        lambda root: list_split_files(root, "_list.txt"), read_train_list, write_train_list, images_in_splits
    ),
    "mlcls": Format(list_mlcls_splits, read_mlcls, write_mlcls, lambda _: "images"),
    "image_folder": Format(
        list_image_folder_splits,
        read_image_folder,
        write_image_folder,
        lambda split: split,
        name_image_folder_images,
        shorten_image_folder_names,
    ),
    "classes_json": Format(
        lambda root: list_split_files(root, ".json"), read_classes_json, write_classes_json, images_in_splits
    ),
    "coco_json": Format(list_coco_json_splits, read_coco_json, write_coco_json, lambda split: split),
    "csv": Format(
        lambda root: list(list_csv_files(root)), read_csv_split, write_csv, images_in_splits, name_csv_images
    ),
    "webdataset": Format(
        list_shard_splits,
        read_webdataset,
        write_webdataset,
        lambda split: split,
        name_members,
        lambda table, names: [decode_name(name) for name in names],
        in_shards=True,
    ),
}
