"""What a user runs to train."""
