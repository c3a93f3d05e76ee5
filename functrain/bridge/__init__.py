"""From PyTorch's stateful world to the functional one, and back."""
