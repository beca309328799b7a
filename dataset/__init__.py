"""Data sets: files on the disk become a table, images become batches."""
