"""One plain training loop for every method that trains through the logits: resumable, and kind to the base model."""
