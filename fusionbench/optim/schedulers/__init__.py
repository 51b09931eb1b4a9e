"""Learning-rate schedules, one file each; all step once a batch."""
