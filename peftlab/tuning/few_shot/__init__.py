"""Few rows per class: contrastive training of the adapter, and a head that is a linear probe on the tuned states."""
