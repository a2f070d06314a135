"""influx: can I trust this influence estimate? Train, estimate, retrain, compare."""
