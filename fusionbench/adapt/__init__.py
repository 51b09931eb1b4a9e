"""Tuning methods, one file each; `base.py` is their contract, `views.py` one backbone under many adapter sets."""
