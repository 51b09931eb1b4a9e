"""What a training will need, told before it starts: parameters, memory, steps."""
