"""Building blocks that two or more strategies or tuning methods share."""
