"""Parameter-efficient tuning methods, one file each; `base.py` is their contract, `views.py` holds one backbone under many adapter sets."""
