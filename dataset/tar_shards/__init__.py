"""Images in shards: tar files of some thousand images each, as the library webdataset writes and reads them.

    write_shards(root, "train", paths, names, labels)    # train-000000.tar, ..., and train.index.csv
    index = register_split(root, "train")    # from then on read_bytes(path of a member) finds the bytes

A sample is two members, `KEY.jpg` (the file as it is, with its own ending) and `KEY.json`: {"labels": [names],
"unknown": [names]}. Shards that others wrote may have `KEY.cls` (class indices) in place of the latter. An image's path
is that of its member: `root/train-000003.tar/sub/000123.jpg`. The index says where in which shard each image begins, so
that no shard is read from its beginning again; it is made by one scan where it is missing. Labels are read from the
index alone.

Shards that lie elsewhere stand in `shards.txt` in `root`, a line each: a path, `https://host/train-000000.tar` or
`s3://bucket/train-000000.tar`; {000000..000099} in a line stands for a hundred lines. A shard is fetched when its first
image is asked for, and kept while there is room. Anything else that webdataset opens, such as `pipe:ssh host cat
/data/train-000000.tar`, is a command, and is run only where SHARD_COMMANDS allows it. Only commands and writing need
the library webdataset, and only `s3:` needs s3fs.

addresses.py      what a line of shards.txt may say, and how a shard elsewhere is opened
web.py            a shard on a web server
object_storage.py a shard in object storage
resuming.py       transfers that break, and go on from there
index.py          which shards there are; the index of a split, made, written and read
scanning.py       a shard read from its beginning to its end: for its index, or for its images
fetching.py       shards that lie elsewhere: copied, kept, dropped
reading.py        the bytes of one image
writing.py        images packed into new shards
"""

from dataset.tar_shards.reading import read_bytes, split_member

__all__ = ["read_bytes", "split_member"]  # all that other folders need
