"""One process for each device of this machine: started, watched and ended together, and why they ended."""
