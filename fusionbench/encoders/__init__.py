"""Encoders, one file for each kind; `base.py` is their contract."""
