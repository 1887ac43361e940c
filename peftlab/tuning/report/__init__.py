"""What a finished run is shown as: model card, curves, confusion matrix."""
