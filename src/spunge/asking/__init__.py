"""What every question to a model comes down to: log-likelihoods, completions, and a classifier's or a judge's word."""
