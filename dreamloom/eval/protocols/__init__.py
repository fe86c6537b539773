"""How a model is put to the test; the metrics themselves know nothing of models."""
