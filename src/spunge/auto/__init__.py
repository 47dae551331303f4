"""`spunge auto`: from a model and two files to a tuned result that is judged on rows that nothing was tuned on."""
