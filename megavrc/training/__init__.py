"""Training: one loop over a task (image stage, video stage, video tokenizer), with DeepSpeed as the engine."""
