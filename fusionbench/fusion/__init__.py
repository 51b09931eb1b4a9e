"""Fusion strategies, one file each; `base.py` is their contract."""
