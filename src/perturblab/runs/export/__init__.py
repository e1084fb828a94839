"""A trained run for others: a model card, the hub's format, ONNX."""
