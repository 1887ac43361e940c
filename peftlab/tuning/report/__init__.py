"""Reports of a finished run: model card, training curves, confusion matrix."""
