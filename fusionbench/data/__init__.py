"""Datasets, one file each, and what they share: the case table, the image cache, splits, transforms, the DataModule."""
