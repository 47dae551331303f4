"""What RMU and adaptive RMU share: steering activations in the first layers of a model, cached and resumable."""
