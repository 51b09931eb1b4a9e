"""Training on many devices: Lightning's strategies, DeepSpeed's ZeRO and its checkpoints."""
